/**
 * Exports of pictures of a page: findings as CSV, COCO and YOLO, and an archive with each picture's files. They are of
 * the result as it was corrected by hand. What was rejected is left out of COCO and YOLO; the CSV has it with its verdict,
 * and says what was corrected. Where results are of several models, each is named: in a column, a folder, and COCO's images.
 */

import { save, saveJson } from "./save.js";
import { buildZip } from "./zip.js";

/** Rows of values as CSV. */
export function writeCsv(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  return writeCells([columns, ...rows.map((row) => columns.map((column) => row[column] ?? ""))]);
}

/** Rows of cells as CSV, in their order; a text that a spreadsheet would run as a formula gets an apostrophe. */
export function writeCells(rows) {
  const disarm = (text) => (/^\s*[=+@-][^]*[(|!]/.test(text) ? `'${text}` : text);
  const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return `${rows.map((cells) => cells.map((cell) => quote(disarm(String(cell)))).join(",")).join("\n")}\n`;
}

/** The name of a picture's file; with its folders where a dropped folder holds several of that name. */
const nameOf = (page, { file }) => (file.path && page.items.filter((item) => item.file.name === file.name).length > 1 ? file.path : file.name);

/** The model of an item, where a page holds results of several. */
const modelOf = (page, { answer }) => (page.items.some((item) => item.answer && item.answer.model !== answer.model) ? { model: answer.model } : {});

/** Findings of one picture as rows with its file, their verdicts and what was corrected; last those that were deleted. */
export const listRows = (page, item) => [
  ...page.describeFindings(item).map((found) => createRow(page, item, found)),
  ...page.describeDeleted(item).map(({ row }) => createRow(page, item, { row: { ...row, by_hand: "deleted" } })),
];

const createRow = (page, item, { key, row: { by_hand = "", ...row } }) => ({ file: nameOf(page, item), ...modelOf(page, item), ...row, verdict: item.verdicts?.get(key) ?? "", by_hand });

/** The findings of a picture that were not rejected. */
export const listKept = (page, item) => page.describeFindings(item).filter(({ key }) => item.verdicts?.get(key) !== "rejected");

const text = (name, content) => ({ name, blob: new Blob([content], { type: "text/plain" }) });

/** The findings of pictures as CSV. */
export const exportTable = (page, items) => new Blob([writeCsv(items.flatMap((item) => listRows(page, item)))], { type: "text/csv" });

const listLabels = (page, items) => [...new Set(items.flatMap((item) => listKept(page, item).map(({ row }) => row.label ?? "region")))].sort();

/** COCO of pictures; where the page has `describeShapes`, each annotation has its mask as run lengths. */
export async function buildCoco(page, items) {
  const shapes = await Promise.all(items.map((item) => page.describeShapes?.(item)));
  const labels = listLabels(page, items);
  const images = items.map((item, id) => ({ id, file_name: nameOf(page, item), ...modelOf(page, item), width: item.answer.width, height: item.answer.height }));
  const annotations = items.flatMap((item, image) => listKept(page, item).map(({ key, box: [x1, y1, x2, y2], row }) => ({
    image_id: image, category_id: labels.indexOf(row.label ?? "region"), bbox: [x1, y1, x2 - x1, y2 - y1], area: row.area ?? (x2 - x1) * (y2 - y1),
    iscrowd: 0, ...(shapes[image]?.has(key) && { segmentation: shapes[image].get(key) }), ...(row.score != null && { score: row.score }), ...(row.by_hand && { attributes: { by_hand: row.by_hand } }),
  })));
  return { images, categories: labels.map((name, id) => ({ id, name })), annotations: annotations.map((one, at) => ({ id: at + 1, ...one })) }; // to COCO's evaluation 0 is no match
}

/** One text of YOLO lines a picture, and the names of its classes; `numberOf` a label, where others know the numbers. */
export function buildYolo(page, items, numberOf) {
  const labels = listLabels(page, items);
  const find = numberOf ?? ((label) => labels.indexOf(label));
  const lines = (item) => listKept(page, item).map(({ box: [x1, y1, x2, y2], row }) => {
    const { width, height } = item.answer;
    return [find(row.label ?? "region"), ...[(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height].map((share) => share.toFixed(6))].join(" ");
  });
  return [
    text("labels/classes.txt", labels.map((name) => `${name}\n`).join("")),
    ...items.map((item) => text(`labels/${stemOf(page, item)}.txt`, lines(item).map((line) => `${line}\n`).join(""))),
  ];
}

export const stemOf = (page, item) => [...Object.values(modelOf(page, item)), nameOf(page, item).replace(/\.[^.]*$/, "") || "picture"].join("/");

/** Save all finished pictures of a page in one form. */
export async function exportAll(page, form) {
  const items = page.items.filter(({ status }) => status === "done");
  for (const item of items) await page.settle(item);
  if (form === "csv") return save(exportTable(page, items), "findings.csv");
  if (form === "coco") return saveJson(await buildCoco(page, items), "coco.json");
  const answers = items.map((item) => ({ name: `answers/${stemOf(page, item)}.json`, blob: new Blob([JSON.stringify(item.answer, null, 1)], { type: "application/json" }) }));
  const found = items.some((item) => page.describeFindings(item).length || page.describeDeleted(item).length) ? [...buildYolo(page, items), { name: "findings.csv", blob: exportTable(page, items) }] : [];
  const files = await Promise.all(items.map((item) => page.describeFiles(item)));
  return save(await buildZip([...files.flat(), ...found, ...answers]), "results.zip");
}
