"use strict";
// Keys of the classes in their order; n, s, u and a are commands.
const KEYS = "1234567890qwertyiopdfghjklzxcvbm";
const get = (id) => document.getElementById(id);
let state = null;
let busy = false;

function show(found) {
  state = found;
  get("error").hidden = true;
  const expected = found.expected;
  const percent = (value) => `${Math.round(100 * value)} %`;
  let facts = `${found.done} of ${found.total} images`;
  if (expected) {
    facts += ` · expected accuracy ${percent(expected.accuracy)} (${percent(expected.interval[0])} to ` +
      `${percent(expected.interval[1])}, from ${expected.examples} random images)`;
  }
  get("facts").textContent = facts;
  get("progress").max = found.total;
  get("progress").value = found.done;
  get("undo").disabled = !found.can_undo;
  const ended = found.image === null;
  get("work").hidden = ended;
  get("end").hidden = !ended;
  get("end").textContent = `No image is left. The labels are in ${found.table}; ` +
    `continue with: headstart train ${found.table} --model bit-mini --out runs/labels`;
  if (ended) return;
  const photo = get("photo");
  photo.src = `images/${found.image}`;
  photo.dataset.image = found.image;
  get("file").textContent = found.name;
  const best = found.suggestions[0];
  get("guess").textContent = found.suggestions
    .map((each) => `${each.label} ${percent(each.probability)}`).join(" · ");
  get("classes").replaceChildren(...found.classes.map((each, i) => {
    const button = document.createElement("button");
    button.type = "button";
    if (best && best.label === each.label) button.className = "likely";
    const key = document.createElement("kbd");
    key.textContent = KEYS[i] || "";
    const count = document.createElement("span");
    count.textContent = each.count;
    button.append(key, each.label, count);
    button.addEventListener("click", () => label(each.label));
    return button;
  }));
  get("alike").checked = false;
  get("alike").disabled = !found.alike;
  get("alike-text").textContent = `all like this (a): ${found.alike} near-identical`;
}

async function send(path, values) {
  if (busy) return;
  busy = true;
  try {
    const options = values && {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
    };
    const response = await fetch(path, options);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error || response.statusText);
    show(found);
  } catch (error) {
    get("error").textContent = error.message;
    get("error").hidden = false;
  } finally {
    busy = false;
  }
}

function label(name) {
  if (state && state.image !== null && name.trim()) {
    send("label", { image: state.image, label: name, alike: get("alike").checked });
  }
}

get("new-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = get("new").value;
  get("new").value = "";
  get("new").blur();
  label(name);
});
get("skip").addEventListener("click", () => state.image !== null && send("skip", { image: state.image }));
get("undo").addEventListener("click", () => send("undo", {}));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state) return;
  if (event.target === get("new")) {
    if (event.key === "Escape") get("new").blur();
    return;
  }
  const key = event.key.toLowerCase();
  const commands = {
    n: () => get("new").focus(),
    s: () => get("skip").click(),
    u: () => get("undo").click(),
    a: () => { get("alike").checked = !get("alike").disabled && !get("alike").checked; },
  };
  const position = KEYS.indexOf(key);
  if (commands[key]) {
    event.preventDefault();
    commands[key]();
  } else if (key.length === 1 && position >= 0 && position < state.classes.length) {
    event.preventDefault();
    label(state.classes[position].label);
  }
});
send("state");
