// A stock text-classification pipeline of transformers.js on a local folder: reads texts from stdin, writes answers.
//
//     npm install @huggingface/transformers
//     NODE_PATH=node_modules node classify.mjs folder '{"dtype": "fp32"}' < texts.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";

const { env, pipeline } = createRequire(import.meta.url)("@huggingface/transformers"); // also found by NODE_PATH

const [, , folder, options] = process.argv;
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder));
const classifier = await pipeline("text-classification", basename(folder), JSON.parse(options));
console.error(`transformers.js ${env.version}`);
console.log(JSON.stringify(await classifier(JSON.parse(readFileSync(0, "utf-8")))));
await classifier.dispose();
