/** Reader of NPZ files (NumPy's zip of arrays), as large captures come. Knows 32-bit floats and 64-bit integers; others are null. */

const END_OF_DIRECTORY = 0x06054b50;
const DEFLATED = 8;

/** Read the arrays of an NPZ file by name: `{ shape, values }`, values row by row. */
export async function readNpz(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end > 0 && view.getUint32(end, true) !== END_OF_DIRECTORY) end -= 1;
  const arrays = {};
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left -= 1) {
    const [nameLength, extraLength, noteLength] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
    arrays[name.replace(/\.npy$/, "")] = readNpy(await readMember(buffer, view, at));
    at += 46 + nameLength + extraLength + noteLength;
  }
  return arrays;
}

/** The content of a member, by its entry of the directory. */
async function readMember(buffer, view, entry) {
  const [size, local] = [view.getUint32(entry + 20, true), view.getUint32(entry + 42, true)];
  const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  const content = buffer.slice(start, start + size);
  if (view.getUint16(entry + 10, true) !== DEFLATED) return content;
  return new Response(new Blob([content]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).arrayBuffer();
}

function readNpy(buffer) {
  const start = 10 + new DataView(buffer).getUint16(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, 10, start - 10));
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((part) => part.trim()).map(Number);
  const Kind = { f4: Float32Array, i8: BigInt64Array }[header.match(/'descr': '<(\w+)'/)?.[1]];
  return Kind ? { shape, values: new Kind(buffer.slice(start)) } : null;
}
