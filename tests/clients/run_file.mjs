// Batches through model.onnx in JavaScript: reads [{name: rows}, …] from stdin, writes [logits, exit layers] a line.
//
//     npm install onnxruntime-node && NODE_PATH=node_modules node run_file.mjs onnxruntime-node model.onnx < batches.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , runtime, path] = process.argv;
const { InferenceSession, Tensor, env } = createRequire(import.meta.url)(runtime); // also found by NODE_PATH

const session = await InferenceSession.create(runtime === "onnxruntime-web" ? readFileSync(path) : path);
console.error(JSON.stringify({ versions: env.versions, inputs: session.inputNames, outputs: session.outputNames }));
const tensor = (name, values) =>
  name === "exit_threshold"
    ? new Tensor("float32", Float32Array.from(values), [values.length])
    : new Tensor("int64", BigInt64Array.from(values.flat(), BigInt), [values.length, values[0].length]);
for (const batch of JSON.parse(readFileSync(0, "utf-8"))) {
  const feeds = Object.fromEntries(Object.entries(batch).map(([name, values]) => [name, tensor(name, values)]));
  const { logits, exit_layer } = await session.run(feeds);
  const [rows, labels] = logits.dims;
  const values = Array.from({ length: rows }, (_, row) => Array.from(logits.data.slice(row * labels, (row + 1) * labels)));
  console.log(JSON.stringify([values, Array.from(exit_layer.data, Number)]));
}
