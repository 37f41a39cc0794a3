/** Downloads and the clipboard: saves a blob or JSON as a file, and copies a text. */

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const ENDINGS = { "text/plain": "txt", "image/svg+xml": "svg", "application/octet-stream": "bin" };

/** The ending of a file's name, by its type. */
export const endingOf = ({ type }) => ENDINGS[type.split(";")[0]] ?? type.match(/^[^;]*?([a-z\d]+)(;|$)/)?.[1] ?? "bin";

export const saveJson = (value, name) => save(new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }), name);

/** Copy a text, also on a page that came without HTTPS, where browsers have no `navigator.clipboard`. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const put = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  };
  document.addEventListener("copy", put);
  const isCopied = document.execCommand("copy");
  document.removeEventListener("copy", put);
  return isCopied ? undefined : Promise.reject(new Error("This browser copies only from pages with HTTPS."));
}
