/** Sizes of pictures: what is over a model's limits, and scaling a picture to fit. */

import { createContext, decodePicture, toBlob } from "./canvas.js";

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const megapixels = (pixels) => `${(pixels / 1e6).toFixed(1)} MP`;

/** The error of a picture that is over the limits of a page's `data-max-…`; null where it is not. */
export function findExcess({ file, size }, { maxBytes, maxPixels, maxSide }) {
  const pixels = size ? size.width * size.height : 0;
  const bounds = { pixels: Number(maxPixels) || Infinity, side: Number(maxSide) || Infinity, bytes: Number(maxBytes) || Infinity };
  const complaints = [
    [pixels > bounds.pixels, `The image has ${megapixels(pixels)}; this model accepts at most ${megapixels(bounds.pixels)}.`],
    [size && Math.max(size.width, size.height) > bounds.side, `The image is ${size?.width} × ${size?.height}; this model accepts sides of at most ${bounds.side} pixels.`],
    [file.size > bounds.bytes, `The file has ${megabytes(file.size)}; at most ${megabytes(bounds.bytes)} can be sent.`],
  ];
  const found = complaints.find(([isOver]) => isOver);
  return found ? Object.assign(new Error(found[1]), { title: "Too large", bounds, status: 413 }) : null;
}

/** Width and height of a picture; null for a format that the browser can't show. */
export async function measurePicture(file) {
  const picture = await decodePicture(file);
  const size = picture && { width: picture.width, height: picture.height };
  picture?.close();
  return size;
}

/** How far a picture is scaled down by some bounds; never up. */
function factorFor({ width, height }, { pixels = Infinity, side = Infinity, bytes = Infinity }, fileBytes) {
  // As JPEG a scaled picture has less than half a byte a pixel.
  const most = Math.min(pixels, fileBytes > bytes ? bytes : Infinity);
  return Math.min(1, Math.sqrt(most / (width * height)), side / Math.max(width, height));
}

/** The size after scaling, in words. */
export function describeSize(bounds, { size, file }) {
  const factor = factorFor(size, bounds, file.size);
  return megapixels(factor ** 2 * size.width * size.height).replace(".0 ", " ");
}

/** Scale the picture of an item of the filmstrip, in place of its file. */
export async function scalePicture(item, bounds) {
  const picture = await decodePicture(item.file);
  const factor = factorFor(item.size, bounds, item.file.size);
  const context = createContext(Math.floor(picture.width * factor), Math.floor(picture.height * factor));
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
  const blob = await toBlob(context, "image/jpeg", 0.95);
  item.file = new File([blob], `${item.file.name.replace(/\.[^.]*$/, "")}-scaled.jpg`, { type: "image/jpeg" });
}
