// Batches through the single file, in Node.js: reads [[ids, mask, thresholds], …] from stdin, writes one answer a line.
//
//     npm install onnxruntime-node && node onnx_exit.mjs model.onnx < batches.json

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { InferenceSession, Tensor } = createRequire(import.meta.url)("onnxruntime-node"); // also found by NODE_PATH

const session = await InferenceSession.create(process.argv[2]);
const matrix = (rows) => new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
for (const [ids, mask, thresholds] of JSON.parse(readFileSync(0, "utf-8"))) {
  const feeds = {
    input_ids: matrix(ids),
    attention_mask: matrix(mask),
    token_type_ids: matrix(ids.map((row) => row.map(() => 0))),
  };
  if (thresholds !== null) feeds.exit_threshold = new Tensor("float32", Float32Array.from(thresholds), [thresholds.length]);
  const { logits, exit_layer } = await session.run(feeds);
  const [rows, labels] = logits.dims;
  const values = Array.from({ length: rows }, (_, row) => Array.from(logits.data.slice(row * labels, (row + 1) * labels)));
  console.log(JSON.stringify([values, Array.from(exit_layer.data, Number)]));
}
