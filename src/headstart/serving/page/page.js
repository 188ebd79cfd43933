"use strict";
const SHOWN = 8; // classes
const at = (id) => document.getElementById(id);
let model = null, token = "", image = null, stream = null, latest = 0;

async function call(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (typeof body === "string") headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body });
  if (response.status === 401) {
    at("token-form").hidden = false;
    at("token").focus();
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(found.error || `the server answered ${response.status}`);
  return found;
}

function show(problem) {
  at("status").textContent = "";
  at("error").textContent = problem;
  at("error").hidden = !problem;
  if (problem) at("result").hidden = true;
}

async function start() {
  try {
    model = await call("model");
  } catch (error) {
    at("facts").textContent = "";
    return show(error.message);
  }
  show("");
  at("token-form").hidden = true;
  at("name").textContent = model.name;
  document.title = `${model.name} · headstart`;
  const count = `${model.labels.length} ${model.labels.length === 1 ? "label" : "labels"}`;
  at("facts").textContent = `${model.task.replaceAll("-", " ")}, ${count}`;
  at("report").hidden = !model.report;
  const images = model.task === "image-classification";
  at("image-input").hidden = !images;
  at("text-input").hidden = images;
  at("result").classList.toggle("texts", !images);
  const asks = model.task === "question-answering";
  at("question").hidden = at("question-label").hidden = !asks;
  if (asks) at("text-label").textContent = "Text that holds the answer";
  at("camera").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
}

async function predict(makeBody) {
  const mine = ++latest;
  show("");
  at("status").textContent = "Working…";
  try {
    const { answers } = await call("predict", makeBody());
    if (mine === latest) answered(answers[0]);
  } catch (error) {
    if (mine === latest) show(error.message);
  }
}

function upload() {
  const form = new FormData();
  form.append("file", image, "image");
  return form;
}

function open(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return show("This is not an image.");
  if (file.size > model.limits.max_bytes) {
    return show(`The file is larger than ${Math.floor(model.limits.max_bytes / 1e6)} MB.`);
  }
  image = file;
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("heat-box").hidden = true;
  predict(upload);
}

function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

function answered(answer) {
  const found = Array.isArray(answer.predictions) ? answer.predictions : [answer.predictions];
  const fractions = found.every((each) => each.score >= 0 && each.score <= 1);
  const name = (each) => each.label || each.answer || each.token_str || `${each.entity_group
    || each.entity || ""}: ${each.word}`;
  at("status").textContent = "";
  at("verdict").textContent = answer.refused ? "None of these, or not sure enough"
    : found.length ? name(found[0]) : "Nothing found";
  at("bars").replaceChildren(...found.slice(0, SHOWN).map((each) => {
    const row = document.createElement("li");
    const label = document.createElement("span"), value = document.createElement("span");
    label.textContent = name(each);
    value.textContent = fractions ? percent(each.score) : each.score.toPrecision(4);
    if (fractions) {
      const bar = document.createElement("meter");
      bar.value = each.score;
      bar.setAttribute("aria-hidden", "true");
      row.append(bar);
    }
    row.append(label, value);
    return row;
  }));
  at("explain").disabled = false;
  at("result").hidden = false;
  at("verdict").focus();
}

async function explain() {
  at("explain").disabled = true;
  at("status").textContent = "Working…";
  try {
    at("heat").src = (await call("explain", upload())).image;
    at("heat-box").hidden = false;
    at("status").textContent = "";
  } catch (error) {
    show(error.message);
  }
}

async function openCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return show(`The camera cannot be used: ${error.message}`);
  }
  at("video").srcObject = stream;
  at("camera-box").hidden = false;
  at("shoot").focus();
}

function closeCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  at("camera-box").hidden = true;
}

function shoot() {
  const video = at("video"), canvas = document.createElement("canvas");
  if (!video.videoWidth) return show("The camera has no image yet; try again.");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(open, "image/png");
  closeCamera();
}

at("file").addEventListener("change", (event) => open(event.target.files[0]));
at("camera").addEventListener("click", openCamera);
at("shoot").addEventListener("click", shoot);
at("stop").addEventListener("click", closeCamera);
at("explain").addEventListener("click", explain);
at("text-input").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value, question = at("question").value;
  const one = model.task === "question-answering" ? { question, context: text } : { text };
  predict(() => JSON.stringify({ inputs: [one] }));
});
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  start();
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && !at("image-input").hidden) open(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length && !at("image-input").hidden) open(files[0]);
});
start();
