"use strict";
// All of it is comfort: without this script the page shows the same, and colours can be switched.

// #color=logprob chooses a colour; #e0t3 opens and shows a turn
function follow() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.includes("=")) {
    const input = document.getElementById("by-" + new URLSearchParams(hash).get("color"));
    if (input) input.checked = true;
    return;
  }
  const target = hash && document.getElementById(hash);
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", follow);
follow();
for (const input of document.getElementsByName("color")) {
  input.addEventListener("change", () => history.replaceState(null, "", "#color=" + input.value));
}

// all turns folded or unfolded
const turns = document.querySelectorAll("details.turn");
if (turns.length) {
  const fold = document.createElement("button");
  fold.id = "fold";
  fold.textContent = "fold all";
  fold.addEventListener("click", () => {
    const open = fold.textContent !== "fold all";
    for (const turn of turns) turn.open = open;
    fold.textContent = open ? "fold all" : "unfold all";
  });
  document.querySelector("header").append(fold);
}

// what a tooltip tells, for fingers: tap a token
const told = document.getElementById("told");
addEventListener("click", (event) => {
  const token = event.target.closest(".tokens .t");
  for (const old of document.querySelectorAll(".told")) old.classList.remove("told");
  told.hidden = !token;
  if (!token) return;
  token.classList.add("told");
  told.textContent = token.title;
});

// a table sorted by the column that is clicked; again, the other way round
for (const head of document.querySelectorAll(".list th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const descending = head.ariaSort === "ascending";
    const body = head.closest("table").tBodies[0];
    const text = (row) => row.cells[head.cellIndex].textContent;
    const order = (a, b) => head.className === "number" ? text(a) - text(b) : text(a) < text(b) ? -1 : text(a) > text(b) ? 1 : 0;
    body.append(...[...body.rows].sort((a, b) => descending ? order(b, a) : order(a, b)));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = descending ? "descending" : "ascending";
  });
}
