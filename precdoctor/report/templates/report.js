"use strict";
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  // the order of `_compact` in html.py
  const COLUMNS = ["name", "format", "shape", "numel", "edq", "low", "high", "lost", "p5", "p50", "p95", "rules", "rank"];
  const SEVERITY = ["", "", "warning", "error"];
  const PAGE = 50;
  const all = JSON.parse(document.getElementById("data").textContent)
    .map((values) => Object.fromEntries(values.map((value, i) => [COLUMNS[i], value])));
  const body = table.tBodies[0];
  const search = document.getElementById("search");
  const illOnly = document.getElementById("ill-only");
  const shown = document.getElementById("shown");
  const more = document.getElementById("more");
  const state = { key: "", down: false, limit: PAGE };

  const edq = (x) => x === null ? "-" : x.toFixed(Math.abs(x) < 0.1 ? 3 : 2);
  const percent = (x) => {
    if (x === null) return "-";
    const text = (100 * x).toFixed(1);
    const near = text === "100.0" && x < 1 ? ">99.9" : text === "0.0" && x > 0 ? "<0.1" : text;
    return near.replace(/\.0$/, "") + " %";
  };
  const bits = (x) => x === null ? "-" : (x < 0 ? "−" : "+") + Math.abs(x).toFixed(1);
  const count = (x) => x.toLocaleString("en");

  function cell(row, text, kind = "", title = "") {
    const td = document.createElement("td");
    td.textContent = text;
    td.className = kind;
    if (title) td.title = title;
    row.append(td);
    return td;
  }

  function line(item) {
    const row = document.createElement("tr");
    row.className = SEVERITY[item.rank];
    const name = document.createElement("th");
    const code = document.createElement("code");
    name.scope = "row";
    for (const part of item.name.split(/(?<=[._])/)) {
      code.append(part, document.createElement("wbr")); // a long name breaks between its parts
    }
    name.append(code);
    row.append(name);
    cell(row, item.format, "wide");
    cell(row, count(item.numel), "n wide", item.shape);
    cell(row, edq(item.edq), "n");
    cell(row, item.low === null || item.low === item.high ? "" : `${edq(item.low)} to ${edq(item.high)}`, "n soft wide");
    cell(row, percent(item.lost), "n");
    cell(row, bits(item.p50), "n", item.p50 === null ? "" : `5 % to 95 %: ${bits(item.p5)} to ${bits(item.p95)}`);
    cell(row, item.rules);
    return row;
  }

  function compare(a, b) {
    const [x, y] = [a[state.key], b[state.key]];
    if (x === null || y === null) return (x === null) - (y === null); // unknown stays below, whatever the order
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return state.down ? -order : order;
  }

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter((item) => {
      if (illOnly.checked && item.rank < 2) return false;
      const text = `${item.name} ${item.format} ${item.rules}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (state.key) found.sort(compare);
    body.replaceChildren(...found.slice(0, state.limit).map(line));
    const visible = Math.min(found.length, state.limit);
    shown.textContent = `${count(visible)} of ${count(found.length)} shown`;
    more.hidden = visible === found.length;
  }

  for (const header of table.tHead.querySelectorAll("th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      state.down = state.key === header.dataset.key && !state.down;
      state.key = header.dataset.key;
      state.limit = PAGE;
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      update();
    });
  }
  const again = () => { state.limit = PAGE; update(); };
  search.addEventListener("input", again);
  illOnly.addEventListener("change", again);
  more.addEventListener("click", () => { state.limit += 400; update(); });
  search.form.addEventListener("submit", (event) => event.preventDefault());
  search.form.hidden = false;
  update();
})();
