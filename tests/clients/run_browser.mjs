// Batches through model.onnx in a browser: reads [{name: rows}, …] from stdin, writes [logits, exit layers] a line.
//
//     npm install onnxruntime-web
//     NODE_PATH=node_modules node run_browser.mjs chromium model.onnx < batches.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";

import { runInBrowser } from "./browser.mjs";

const [, , browser, model] = process.argv;
const runtime = dirname(createRequire(import.meta.url).resolve("onnxruntime-web")); // also found by NODE_PATH

const [answers, ...versions] = await runInBrowser(browser, {
  folders: { runtime, model: dirname(model), clients: import.meta.dirname },
  given: { path: `/model/${basename(model)}`, batches: JSON.parse(readFileSync(0, "utf-8")) },
  script: `
    const ort = await import("/runtime/ort.wasm.min.mjs");
    const { answer } = await import("/clients/batches.mjs");
    const session = await ort.InferenceSession.create(given.path);
    const answers = [];
    for (const batch of given.batches) answers.push(await answer(ort, session, batch));
    return [answers, ort.env.versions, navigator.userAgent];
  `,
});
console.error(JSON.stringify(versions));
for (const answer of answers) console.log(JSON.stringify(answer));
