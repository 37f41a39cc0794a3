/** Exports of one picture with its corrections and verdicts, in the forms that the service has of its own result. */

import { createContext, toBlob } from "./canvas.js";
import { buildCoco, buildYolo, exportTable, listKept } from "./export_all.js";
import { keyOf } from "./findings.js";
import { save, saveJson } from "./save.js";
import { buildZip } from "./zip.js";

/** Save a picture's result as a media type, to a file of a name. */
export async function exportOne(page, item, media, name) {
  const { width, height, detections } = item.answer;
  const kept = new Set(listKept(page, item).map(({ key }) => key));
  if (media === "application/json") return saveJson({ ...item.answer, ...countBoxes(detections.filter((each) => kept.has(keyOf(each)))) }, name);
  if (media === "text/csv") return save(exportTable(page, [item]), name);
  if (media === "application/vnd.coco+json") return saveJson(await buildCoco(page, [item]), name);
  const kinds = new Map(detections.map(({ label, class_id: kind }) => [label, kind])); // the model's, as in texts of other pictures
  if (media === "text/plain") return save(buildYolo(page, [item], (label) => kinds.get(label)).at(-1).blob, name);
  if (!page.picture) throw Object.assign(new Error("This browser can’t show the image, so it can’t draw on it."), { title: "No image", hint: "Save CSV, COCO or YOLO." });
  if (media === "application/zip") return save(await cutOut(page, listKept(page, item)), name);
  const context = createContext(width, height);
  context.drawImage(page.picture, 0, 0, width, height);
  page.drawFound(context, item.answer, 1, kept);
  return save(await toBlob(context), name);
}

/** Boxes, and how many there are of each class. */
export function countBoxes(detections) {
  const counts = {};
  for (const { label } of detections) counts[label] = (counts[label] ?? 0) + 1;
  return { detections, counts };
}

/** An archive of each box as a picture. */
async function cutOut(page, found) {
  const files = found.map(async ({ box: [x1, y1, x2, y2], row }, at) => {
    const context = createContext(Math.max(1, Math.round(x2 - x1)), Math.max(1, Math.round(y2 - y1)));
    context.drawImage(page.picture, -Math.round(x1), -Math.round(y1));
    return { name: `${String(at + 1).padStart(3, "0")}-${row.label}.png`, blob: await toBlob(context) };
  });
  return buildZip(await Promise.all(files));
}
