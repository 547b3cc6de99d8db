// Batches through model.onnx in Node.js: reads [{name: rows}, …] from stdin, writes [logits, exit layers] a line.
//
//     npm install onnxruntime-node && NODE_PATH=node_modules node run_file.mjs onnxruntime-node model.onnx < batches.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { answer } from "./batches.mjs";

const [, , runtime, path] = process.argv;
const ort = createRequire(import.meta.url)(runtime); // also found by NODE_PATH

const session = await ort.InferenceSession.create(runtime === "onnxruntime-web" ? readFileSync(path) : path);
console.error(JSON.stringify(ort.env.versions));
for (const batch of JSON.parse(readFileSync(0, "utf-8"))) console.log(JSON.stringify(await answer(ort, session, batch)));
