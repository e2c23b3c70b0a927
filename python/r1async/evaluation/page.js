"use strict";
let show = "all";

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function add(body, title, text, kind) {
  const heading = document.createElement("h4");
  heading.textContent = title;
  const block = document.createElement("pre");
  block.textContent = text;
  if (kind) {
    block.className = heading.dataset.kind = block.dataset.kind = kind;
    block.hidden = heading.hidden = show !== "all" && show !== kind;
  }
  body.append(heading, block);
}

async function open(details) {
  if (!details.open || details.dataset.filled) return;
  details.dataset.filled = "yes";
  const body = details.querySelector(".body");
  try {
    const problem = await unpack(details.querySelector("script").textContent);
    add(body, "Problem", problem.prompt);
    if (problem.answer) add(body, "Reference", problem.answer);
    for (const each of problem.samples) {
      const words = { abstained: "not graded" }[each.kind] || each.kind;
      const status = ["ok", each.kind].includes(each.status) ? "" : ` (${each.status})`;
      add(body, `Sample ${each.member + 1}: ${words}${status}, ${each.tokens.toLocaleString()} tokens`, each.text, each.kind);
    }
  } catch (error) {
    add(body, "This problem cannot be shown", String(error));
  }
}

function filter() {
  const words = document.querySelector(".filters input").value.toLowerCase();
  for (const button of document.querySelectorAll("[data-show]")) {
    button.setAttribute("aria-pressed", String(button.dataset.show === show));
  }
  for (const details of document.querySelectorAll("details")) {
    const has = show === "all" || details.dataset.kinds.split(" ").includes(show);
    details.hidden = !has || !details.querySelector("summary").textContent.toLowerCase().includes(words);
  }
  for (const each of document.querySelectorAll(".body [data-kind]")) {
    each.hidden = show !== "all" && each.dataset.kind !== show;
  }
}

for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", () => open(details));
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => { show = button.dataset.show; filter(); });
}
document.querySelector(".filters input").addEventListener("input", filter);
