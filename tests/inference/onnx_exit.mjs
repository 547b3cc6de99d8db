// One row a call through the single file, in Node.js: reads [[ids, thresholds], …] from stdin, writes one answer a line.
//
//     npm install onnxruntime-node && node onnx_exit.mjs model.onnx < rows.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { InferenceSession, Tensor } = createRequire(import.meta.url)("onnxruntime-node"); // also found by NODE_PATH

const session = await InferenceSession.create(process.argv[2]);
const row = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
for (const [ids, thresholds] of JSON.parse(readFileSync(0, "utf-8"))) {
  const feeds = {
    input_ids: row(ids),
    attention_mask: row(ids.map(() => 1)),
    token_type_ids: row(ids.map(() => 0)),
    early_exit_entropy: new Tensor("float32", Float32Array.from(thresholds), [thresholds.length]),
  };
  const { logits, exit_layer } = await session.run(feeds);
  console.log(JSON.stringify([Array.from(logits.data), Array.from(exit_layer.data, Number)]));
}
