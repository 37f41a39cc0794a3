/** DICOM in the workbench of pictures: frames of files in, segmentations and reports of the results out. */

import { decodePicture, readMap } from "../../js/canvas.js";
import { decodeBase64, selectedModel } from "../../js/form.js";
import { save } from "../../js/save.js";
import { submit } from "../../js/submit.js";
import { buildZip } from "../../js/zip.js";

const PATH = "/v1/segment/dicom";

/** Options of a study, among those of the page. */
const OPTIONS = ["threshold", "normalise", "min_area", "min_peak", "keep_largest"];

/** A DICOM file has its mark after 128 bytes. */
export const accepts = async (file) => (await file.slice(128, 132).text()) === "DICM";

/** The frames of DICOM files as items of the filmstrip; what the service skipped is said. */
export async function open(page, files) {
  const sources = new Map();
  for (const file of files) {
    let { name } = file;
    while (sources.has(name)) name = `_${name}`; // files of two folders may share a name
    sources.set(name, new File([file], name));
  }
  const { pictures, skipped } = await send(`${PATH}/pictures`, { files: [...sources.values()] });
  if (skipped.length) page.showError({ title: "Some files were skipped", message: skipped.join(" · ") });
  return pictures.map(({ file: name, instance, frame, picture }) => {
    const stem = name.replace(/\.dcm$/i, "");
    const image = new File([decodeBase64(picture, "image/png")], `${stem}.${frame}.png`, { type: "image/png" });
    return { file: image, status: "waiting", dicom: { source: sources.get(name), instance, frame } };
  });
}

/** Save a segmentation and a report of each series: as the model made it, or a version with the corrected masks. */
export async function exportAll(page) {
  const items = page.items.filter(({ dicom, status }) => dicom && status === "done");
  if (!items.length) {
    const message = "A DICOM segmentation refers to the patient, study and frames of DICOM files, and a PNG or JPEG has none.";
    throw Object.assign(new Error(message), { title: "There is no DICOM file here", hint: "Drop the DICOM files of the study on this page, then correct and export them." });
  }
  page.showProgress(undefined, "Making DICOM objects");
  try {
    const sources = [...new Set(items.map(({ dicom }) => dicom.source))];
    const options = Object.fromEntries(Object.entries(page.requestOptions).filter(([name]) => OPTIONS.includes(name)));
    const { series } = await send(PATH, { files: sources, model: selectedModel(page), include: "segmentation,report,masks", ...options });
    const made = (await Promise.all(series.map((one) => makeObjects(page, items, sources, one)))).flat();
    if (made.length === 1) save(made[0].blob, made[0].name);
    else if (made.length) save(await buildZip(made), "dicom.zip");
  } finally {
    page.showProgress(null);
  }
}

/** The objects of one series as files. */
async function makeObjects(page, items, sources, series) {
  const changed = [];
  for (const { instance, frames } of series.instances) {
    for (const { frame, mask } of frames) {
      const item = items.find(({ dicom }) => dicom.instance === instance && dicom.frame === frame);
      const shown = item && (await page.readMask(item));
      if (shown && !isSame(readMap(await decodePicture(decodeBase64(mask, "image/png")), item.answer), shown.map)) changed.push(new File([shown.blob], `${instance}.${frame}.png`));
    }
  }
  const stem = items.find(({ dicom }) => dicom.instance === series.instances[0].instance)?.dicom.source.name.replace(/\.dcm$/i, "") ?? series.series;
  if (!series.segmentation) {
    if (!changed.length) return [];
    throw Object.assign(new Error(series.warnings.join(" ") || `The model found nothing in ${stem}, so there is no segmentation to correct.`), { title: "No segmentation", hint: "Lower the threshold until the model marks something, then correct that." });
  }
  const names = new Set(series.instances.map(({ file }) => file));
  const files = sources.filter(({ name }) => names.has(name));
  const segmentation = new File([decodeBase64(series.segmentation, "application/dicom")], "before.seg.dcm");
  const made = changed.length ? await send(`${PATH}/corrections`, { files, segmentation: [segmentation], corrected: changed }) : series;
  return ["segmentation", "report"].filter((name) => made[name]).map((name) => ({ name: `${stem}.${name === "report" ? "sr" : "seg"}.dcm`, blob: decodeBase64(made[name], "application/dicom") }));
}

const isSame = (first, second) => first.every((value, at) => value > 127 === second[at] > 127);

/** Send a form; a list is a field of files. */
async function send(path, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (Array.isArray(value)) for (const file of value) body.append(name, file, file.name);
    else body.append(name, String(value));
  }
  return (await submit(path, { body })).json();
}
