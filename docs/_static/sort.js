// Let the headings of tables of the class `sortable` sort them.

/** Return what a cell is compared by: its number, or else its text. */
function valueOf(row, column) {
  const text = row.cells[column].innerText.trim();
  const number = parseFloat(text);
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

/** Compare numbers, then texts, then cells without a value. */
function compare(one, other) {
  const rank = (value) => (value === '' || value === '-' ? 2 : +(typeof value === 'string'));
  if (rank(one) !== rank(other)) return { by: rank(one) - rank(other), fixed: true };
  return { by: rank(one) ? String(one).localeCompare(String(other)) : one - other };
}

/** Sort a table by a column; a second call reverses the order. */
function sortBy(table, heading, column) {
  const sign = heading.ariaSort === 'ascending' ? -1 : 1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([one], [other]) => {
    const { by, fixed } = compare(one, other);
    return fixed ? by : sign * by;
  });
  body.append(...rows.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
  heading.ariaSort = sign > 0 ? 'ascending' : 'descending';
}

document.addEventListener('DOMContentLoaded', () => {
  for (const table of document.querySelectorAll('table.sortable')) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement('button');
      button.append(...heading.childNodes);
      button.addEventListener('click', () => sortBy(table, heading, column));
      heading.append(button);
    });
  }
});
