// A batch through a session of any ONNX Runtime for JavaScript: {name: rows} in, [logits, exit layers] out.

const tensor = (Tensor, name, values) =>
  name === "exit_threshold"
    ? new Tensor("float32", Float32Array.from(values), [values.length])
    : new Tensor("int64", BigInt64Array.from(values.flat(), BigInt), [values.length, values[0].length]);

export async function answer({ Tensor }, session, batch) {
  const feeds = Object.entries(batch).map(([name, values]) => [name, tensor(Tensor, name, values)]);
  const { logits, exit_layer } = await session.run(Object.fromEntries(feeds));
  const [rows, labels] = logits.dims;
  const values = Array.from({ length: rows }, (_, row) => Array.from(logits.data.slice(row * labels, (row + 1) * labels)));
  return [values, Array.from(exit_layer.data, Number)];
}
