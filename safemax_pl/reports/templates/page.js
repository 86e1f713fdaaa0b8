// Header buttons sort their table: first click ascending, second descending; cells without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    headers.forEach(other => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const missing = text => text === undefined;
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const a = value(one), b = value(other);
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return direction * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    });
    table.tBodies[0].append(...rows);
  }));
}
