/** Tokens of an answer as pieces of its text, and moving between items of which only one is a tab stop. */

/**
 * The pieces of a text that its tokens make, with each token's place in the answer; null where they don't make it up.
 * A character of several tokens belongs to the last of them.
 */
export function splitTokens(scores, text) {
  const decoder = new TextDecoder();
  const pieces = [];
  let left = text;
  for (const [index, { bytes }] of scores.entries()) {
    if (!left) break;
    const piece = decoder.decode(Uint8Array.from(bytes), { stream: true }).slice(0, left.length);
    if (!left.startsWith(piece)) return null;
    left = left.slice(piece.length);
    if (piece) pieces.push({ text: piece, index });
  }
  if (left && left === decoder.decode()) pieces.push({ text: left, index: scores.length - 1 }); // it ends inside a character
  else if (left) return null;
  return pieces.length ? pieces : null;
}

/** Move the focus by an arrow key; items stand in rows of `columns`. Returns whether the key moves it. */
export function moveFocus(item, kind, key, columns = 1) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (!step) return false;
  const items = [...(item.closest("table") ?? item.parentElement).querySelectorAll(kind)];
  const next = items[items.indexOf(item) + step];
  if (!next) return true;
  item.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  return true;
}
