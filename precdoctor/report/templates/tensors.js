"use strict";
// The table of tensors is complete without this: searched and sorted, by what its cells show.
(() => {
  const table = document.getElementById("tensor-table");
  const search = document.getElementById("tensor-search");
  const illOnly = document.getElementById("tensor-ill-only");
  const shown = document.getElementById("tensor-shown");
  const body = table.tBodies[0];
  const all = [...body.rows];
  const words = new Map(all.map((row) => [row, row.textContent.toLowerCase()]));

  // "1,024", "<0.1 %", "−2.7"; what is no number ("-", "yes") stays below, whatever the order
  const number = (text) => parseFloat(text.replace("−", "-").replace(/[<>+,\s]/g, ""));

  function sort(column, isNumber, down) {
    const value = (row) => row.cells[column].textContent.trim();
    all.sort((a, b) => {
      const [x, y] = isNumber ? [number(value(a)), number(value(b))] : [value(a), value(b)];
      if (isNumber && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
      const order = isNumber ? x - y : x.localeCompare(y, "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...all);
  }

  function filter() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of all) {
      row.hidden = (illOnly.checked && !("found" in row.dataset)) || !wanted.every((word) => words.get(row).includes(word));
      count += !row.hidden;
    }
    shown.textContent = `${count.toLocaleString("en")} of ${all.length.toLocaleString("en")} shown`;
  }

  for (const header of table.tHead.querySelectorAll("th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(header.cellIndex, header.classList.contains("n"), down);
    });
  }
  search.addEventListener("input", filter);
  illOnly.addEventListener("change", filter);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  search.form.hidden = false;
  filter();
})();
