// Search of the API reference: shows the operations whose words contain all that was typed, and opens what a link names.

const input = document.querySelector("#search");
const found = document.querySelector("#found");
const operations = [...document.querySelectorAll("details.operation")];
const links = new Map([...document.querySelectorAll("[data-operation]")].map((one) => [one.dataset.operation, one]));

function search() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const operation of operations) {
    operation.hidden = !words.every((word) => operation.dataset.words.includes(word));
    links.get(operation.id).hidden = operation.hidden;
    count += operation.hidden ? 0 : 1;
  }
  for (const section of document.querySelectorAll("section.group")) {
    section.hidden = !section.querySelector("details.operation:not([hidden])");
  }
  for (const group of document.querySelectorAll("details.group")) {
    group.hidden = !group.querySelector("li:not([hidden])");
    group.open = words.length > 0;
  }
  found.textContent = words.length > 0 ? `${count} of ${operations.length} operations` : "";
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target?.matches("details")) return;
  if (target.hidden) {
    input.value = "";
    search();
  }
  target.open = true;
  target.scrollIntoView();
}

input.addEventListener("input", search);
addEventListener("hashchange", openTarget);
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== input) {
    event.preventDefault();
    input.focus();
  }
});
openTarget();
