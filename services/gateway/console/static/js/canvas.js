/** Canvas helpers: decoding, scaling, blending and encoding of pictures. */

/** Decode a picture; null for a format that the browser can't show (TIFF, in most). */
export const decodePicture = (blob) => createImageBitmap(blob).catch(() => null);

/** Width and height of a picture, made to fit into a square of `longest`. */
export function fitSize(width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/** A grey picture as bytes, row by row, at a size. */
export function readMap(bitmap, { width, height }) {
  const context = createContext(width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: width * height }, (_, at) => data[at * 4]);
}

/** The place of a pointer in pixels of a canvas, which the style sheet fits into its box. */
export function locate({ offsetX, offsetY }, { clientWidth, clientHeight, width, height }) {
  const scale = Math.min(clientWidth / width, clientHeight / height);
  return [(offsetX - (clientWidth - width * scale) / 2) / scale, (offsetY - (clientHeight - height * scale) / 2) / scale];
}

/** The 2D context of a new canvas. */
export function createContext(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** The content of a context as a file. */
export const toBlob = (context, type = "image/png", quality = 0.92) =>
  new Promise((resolve) => context.canvas.toBlob(resolve, type, quality));

/** Draw RGBA values over the present content (`putImageData` would replace it). */
export function blend(context, image) {
  const over = createContext(image.width, image.height);
  over.putImageData(image, 0, 0);
  context.drawImage(over.canvas, 0, 0, context.canvas.width, context.canvas.height);
}

/** Draw over a picture, but not left of a border at a share of its width. */
export function drawWiped(context, share, draw) {
  const { width, height } = context.canvas;
  const border = width * share;
  context.save();
  context.beginPath();
  context.rect(border, 0, width - border, height);
  context.clip();
  draw();
  context.restore();
  if (border) context.fillRect(border - 1, 0, 2, height);
}

/** A colour of the style sheet as [red, green, blue]. */
export function readColour(element, name) {
  const context = createContext(1, 1);
  context.fillStyle = getComputedStyle(element).getPropertyValue(name).trim();
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}
