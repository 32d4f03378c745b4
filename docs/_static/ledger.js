// The radio buttons filter by CSS alone; this adds the search by words and the count of rows.
"use strict";
{
  const ledger = document.querySelector(".ledger");
  const words = ledger.querySelector("#words");
  const rows = [...ledger.querySelectorAll("tr.one")];

  const update = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const body of ledger.querySelectorAll("tbody")) body.hidden = false;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => row.getClientRects().length > 0);
    for (const body of ledger.querySelectorAll("tbody")) {
      body.hidden = !shown.some((row) => body.contains(row));
    }
    ledger.querySelector("output").textContent = `${shown.length} of ${rows.length} rows`;
  };

  ledger.querySelector(".search").hidden = false;
  ledger.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  ledger.querySelector("form").addEventListener("input", update);
  update();
}
