"use strict";

// Sorting: a heading's first click puts the largest number, or the first name, on top; the next turns it round.
for (const button of document.querySelectorAll("th[aria-sort] button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const column = heading.cellIndex;
    const named = heading.classList.contains("name");
    const before = heading.getAttribute("aria-sort");
    const ascending = before === "none" ? named : before === "descending";
    for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");

    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = named ? (a, b) => value(a).localeCompare(value(b)) : (a, b) => value(a) - value(b);
    const body = heading.closest("table").tBodies[0];
    body.append(...[...body.rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a))));
  });
}

// The confusion matrix: pointing at a cell (or focusing it) says what it counts, clicking shows its images, and
// arrows go to the next cell that has any. Of a large matrix there is a list of mistakes instead, to click on.
const tip = document.getElementById("tip");
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function showTip(button) {
  tip.textContent = button.getAttribute("aria-label");
  tip.hidden = false;
  const cell = button.getBoundingClientRect();
  const left = cell.left + cell.width / 2 - tip.offsetWidth / 2;
  const above = cell.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${above < 4 ? cell.bottom + 6 : above}px`;
}

function hideTip() {
  tip.hidden = true;
}

function showImages(table, button) {
  const before = table.querySelector("button[aria-pressed=true]");
  for (const [each, pressed] of [[before, false], [button, true]]) {
    if (!each) continue;
    each.setAttribute("aria-pressed", pressed);
    document.getElementById(each.getAttribute("aria-controls")).hidden = !pressed;
  }
}

function nextButton(button, [down, right]) {
  const rows = button.closest("table").rows;
  let { cellIndex: column, parentElement: { rowIndex: row } } = button.closest("td");
  while (rows[row += down]?.cells[column += right]) {
    const found = rows[row].cells[column].querySelector("button");
    if (found) return found;
  }
  return null;
}

const cellOf = (event) => event.target.closest("td button");

for (const table of document.querySelectorAll(".matrix, .choice")) {
  table.addEventListener("click", (event) => cellOf(event) && showImages(table, cellOf(event)));
}

for (const table of document.querySelectorAll(".matrix")) {
  table.addEventListener("pointerover", (event) => (cellOf(event) ? showTip(cellOf(event)) : hideTip()));
  table.addEventListener("pointerleave", hideTip);
  table.addEventListener("focusout", hideTip);
  table.addEventListener("focusin", (event) => {
    const button = cellOf(event);
    for (const other of table.querySelectorAll("td button[tabindex='0']")) other.tabIndex = -1;
    button.tabIndex = 0;
    showTip(button);
  });
  table.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    if (!(event.key in steps) || !cellOf(event)) return;
    event.preventDefault();
    nextButton(cellOf(event), steps[event.key])?.focus();
  });
}
document.addEventListener("scroll", hideTip, { passive: true });
