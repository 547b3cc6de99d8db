// A stock text-classification pipeline of transformers.js in a browser, on a local folder: reads texts from stdin,
// writes answers.
//
//     npm install @huggingface/transformers
//     NODE_PATH=node_modules node classify_browser.mjs chromium folder '{"dtype": "fp32"}' < texts.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";

import { runInBrowser } from "./browser.mjs";

const [, , browser, folder, options] = process.argv;
const { resolve: find } = createRequire(import.meta.url); // also found by NODE_PATH
const runtime = "/runtime/ort.webgpu.bundle.min.mjs";

const [answers, ...versions] = await runInBrowser(browser, {
  folders: {
    runtime: dirname(find("onnxruntime-web")),
    library: dirname(find("@huggingface/transformers")),
    models: dirname(resolve(folder)),
  },
  modules: { "onnxruntime-web/webgpu": runtime, "onnxruntime-common": runtime },
  given: { name: basename(folder), options: JSON.parse(options), texts: JSON.parse(readFileSync(0, "utf-8")) },
  script: `
    const { env, pipeline } = await import("/library/transformers.web.min.js");
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.localModelPath = "/models/";
    env.backends.onnx.wasm.wasmPaths = "/runtime/";
    const classify = await pipeline("text-classification", given.name, given.options);
    return [await classify(given.texts), env.version, navigator.userAgent];
  `,
});
console.error(JSON.stringify(versions));
console.log(JSON.stringify(answers));
