/**
 * Files for the workbench of pictures: those that browsers show, and those that a plug-in opens, such as studies of
 * several frames. A plug-in's module has `accepts(file)`, `open(page, files)`, which returns items, and `exportAll(page, form)`.
 */

const isPicture = ({ name, type }) => type.startsWith("image/") || /\.tiff?$/i.test(name);

/** Files as items of the filmstrip; a file that nobody knows is sent as a picture, so that the service says what it is. */
export async function openFiles(page, files) {
  const modules = page.querySelector("[data-addons]")?.dataset.addons.split(" ").filter(Boolean) ?? [];
  const others = files.filter((file) => !isPicture(file));
  const opened = new Map();
  for (const module of others.length ? await Promise.all(modules.map((url) => import(url))) : []) {
    const known = await Promise.all(others.map((file) => module.accepts(file)));
    const own = others.filter((file, at) => known[at] && !opened.has(file));
    own.forEach((file) => opened.set(file, []));
    if (own.length) opened.set(own[0], await openOwn(page, module, own));
  }
  return files.flatMap((file) => opened.get(file) ?? [{ file, status: "waiting" }]);
}

async function openOwn(page, module, files) {
  page.show(false, "drop");
  page.showError(null);
  page.showProgress(undefined, "Reading the files");
  try {
    return await module.open(page, files);
  } catch (problem) {
    page.show(page.items.length === 0, "drop");
    page.showError(problem);
    return [];
  } finally {
    page.showProgress(null);
  }
}
