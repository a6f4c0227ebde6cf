// Sorting, the choice between light and dark, and saving the claims. The page is complete without.
//
// A fragment sets the same things, as in index.html#theme=dark&sort=experiment-vision-1:1:descending
// (id of a table, column from 0, order), so that a link can point at a sorted table.
"use strict";

const root = document.documentElement;

function setTheme(theme) {
  root.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
}

function stored(value) {
  // Browsers may refuse storage to files; the choice then lasts until the page is left.
  try {
    if (value !== undefined) localStorage.setItem("theme", value);
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}

function keyOf(row, column) {
  const cell = row.cells[column];
  const number = parseFloat(cell.dataset.value);
  return Number.isNaN(number) ? cell.textContent.trim().toLowerCase() : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sortTable(table, column, order) {
  const headers = [...table.tHead.rows[0].cells];
  if (!headers[column]) return;
  const sign = order === "descending" ? -1 : 1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: keyOf(row, column) }));
  const empty = ({ key }) => key === "–" || key === "";  // last in either order
  rows.sort((a, b) => empty(a) - empty(b) || sign * compare(a.key, b.key));
  body.append(...rows.map(({ row }) => row));
  headers.forEach((header, i) => {
    if (i === column) header.setAttribute("aria-sort", order);
    else header.removeAttribute("aria-sort");
  });
}

function nextOrder(header) {
  const first = header.classList.contains("number") ? "descending" : "ascending";
  const other = first === "descending" ? "ascending" : "descending";
  return header.getAttribute("aria-sort") === first ? other : first;
}

function fromFragment() {
  if (!location.hash.includes("=")) return;
  const asked = new URLSearchParams(location.hash.slice(1));
  if (["light", "dark"].includes(asked.get("theme"))) setTheme(asked.get("theme"));
  for (const wanted of asked.getAll("sort")) {
    const [id, column, order] = wanted.split(":");
    const table = document.getElementById(id);
    if (table?.tHead) sortTable(table, Number(column), order ?? "ascending");
  }
}

function saveClaims() {
  const text = document.getElementById("claims-data").textContent;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "claims.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortTable(table, column, nextOrder(header)));
    header.append(button);
  });
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
setTheme(stored() ?? (prefersDark ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => {
  const theme = root.dataset.theme === "dark" ? "light" : "dark";
  setTheme(theme);
  stored(theme);
});
document.getElementById("save").addEventListener("click", saveClaims);
for (const control of document.querySelectorAll(".needs-script")) control.hidden = false;
addEventListener("hashchange", fromFragment);
fromFragment();
