// Asks for pairs, shows one while the next loads, and sends what the judge chooses.

import { Player } from "./player.js";
import { translate, words } from "./words.js";

const RETRY = 1000; // milliseconds
const PAUSE = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 180; // for a choice to be seen
const LOADED = HTMLMediaElement.HAVE_CURRENT_DATA;

const by = (id) => document.getElementById(id);
const stages = [...document.querySelectorAll(".stage")];
const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time));
const player = new Player((fraction, playing) => {
  if (document.activeElement !== by("seek")) by("seek").value = 1000 * fraction;
  document.body.dataset.playing = playing;
});

let judge = "";
let round = null; // of the pairs that the judge has agreed to
let queue = []; // the pair on show, and those after it
let judged = []; // ids of what was judged on this page, for undoing
let generation = 0; // counts the pairs shown, so that one which has gone is not waited for

// --- the server ---

class Refused extends Error {}

/** Call the server until it answers; a call may arrive twice, which does no harm. */
async function call(method, path, body) {
  for (;;) {
    const response = await fetch(path, {
      method,
      headers: { "content-type": "application/json" },
      body: body && JSON.stringify(body),
    }).catch(() => null);
    if (response?.ok) {
      notice("");
      return response.json();
    }
    if (response && response.status < 500) throw new Refused((await response.json()).detail);
    notice(words.lost);
    await sleep(RETRY);
  }
}

async function fill() {
  while (queue.length < 2) {
    const pair = await call("POST", "/api/pairs", { judge });
    queue.push(pair);
    round ??= pair.progress.round;
    showProgress(pair.progress);
  }
}

// --- the page ---

function setState(state) {
  document.body.dataset.state = state; // loading, ready, broken or saving
}

function notice(text) {
  by("notice").textContent = text;
  by("notice").hidden = !text;
}

function showProgress({ judged: all, done, total, round: now }) {
  by("progress").value = done / total;
  by("count").textContent = words.count(done, total) + (now > 1 ? ` (${all})` : "");
}

/** The stage that holds a pair, loading it in one that is not needed if none does. */
function stageOf(pair) {
  const wanted = queue.slice(0, 2).map(({ id }) => id);
  let stage = stages.find(({ dataset }) => dataset.pair === pair.id);
  if (!stage) {
    stage = stages.find(({ dataset }) => !wanted.includes(dataset.pair));
    stage.dataset.pair = pair.id;
    const [left, right] = stage.querySelectorAll("video");
    left.src = pair.left;
    right.src = pair.right;
  }
  return stage;
}

function loaded(video) {
  if (video.readyState >= LOADED) return Promise.resolve();
  return new Promise((resolve, reject) => {
    if (video.error) reject(video.error);
    video.addEventListener("loadeddata", resolve, { once: true });
    video.addEventListener("error", reject, { once: true });
    video.play().catch(() => {}); // some phones load nothing before they are told to play
  });
}

/** Wait for a video; one that failed is tried again once the server answers, which may have been away. */
async function load(video) {
  if (video.error) video.load();
  try {
    await loaded(video);
  } catch {
    await call("GET", "/api/start");
    video.load();
    await loaded(video);
  }
}

function fit(stage) {
  for (const video of stage.querySelectorAll("video")) {
    video.parentElement.style.setProperty("--ratio", video.videoWidth / video.videoHeight);
  }
  const [video] = stage.querySelectorAll("video");
  stage.classList.toggle("stacked", video.videoWidth >= video.videoHeight);
}

async function show() {
  const shown = ++generation;
  setState("loading");
  player.attach([]);
  await fill();
  const stage = stageOf(queue[0]);
  const videos = [...stage.querySelectorAll("video")];
  const waiting = Promise.all(videos.map(load));
  for (const one of stages) {
    one.hidden = one !== stage;
    for (const button of one.querySelectorAll(".chosen")) button.classList.remove("chosen");
  }
  stageOf(queue[1]);
  by("undo").disabled = !judged.length;
  try {
    await waiting;
  } catch {
    if (shown === generation) {
      notice(words.broken);
      setState("broken");
    }
    return;
  }
  if (shown !== generation) return;
  fit(stage);
  player.attach(videos);
  setState("ready");
}

// --- what a judge does ---

async function choose(choice) {
  const state = document.body.dataset.state;
  if (state !== "ready" && !(state === "broken" && choice === "skip")) return;
  setState("saving");
  const pair = queue[0];
  document.querySelector(`.stage:not([hidden]) [data-choice=${choice}], .others [data-choice=${choice}]`)
    .classList.add("chosen");
  try {
    const [{ progress }] = await Promise.all([
      call("PUT", `/api/pairs/${pair.id}/judgement`, { choice }),
      sleep(PAUSE),
    ]);
    judged.push(pair.id);
    showProgress(progress);
    if (progress.round > round) {
      round = progress.round;
      await answered(by("done"));
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // else: the server knows no such pair; on to the next
  }
  document.querySelector(".others .chosen")?.classList.remove("chosen");
  queue.shift();
  await show();
}

async function undo() {
  if (!judged.length || !["ready", "broken"].includes(document.body.dataset.state)) return;
  setState("saving");
  try {
    const pair = await call("DELETE", `/api/pairs/${judged.pop()}/judgement`);
    queue.unshift(pair);
    showProgress(pair.progress);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
  await show();
}

const KEYS = {
  ArrowLeft: () => choose("left"),
  a: () => choose("left"),
  ArrowRight: () => choose("right"),
  l: () => choose("right"),
  ArrowDown: () => choose("tie"),
  t: () => choose("tie"),
  s: () => choose("skip"),
  u: undo,
  Backspace: undo,
  " ": () => player.toggle(),
  r: () => player.replay(),
};

document.addEventListener("keydown", (event) => {
  const own = document.querySelector("dialog[open]") || event.target.matches("input");
  if (own || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act && !(event.key === " " && event.target.matches("button"))) {
    event.preventDefault();
    act();
  }
});

/** Run on a click, and give the keys back to the page if a pointer made it. */
function onClick(element, act) {
  element.addEventListener("click", (event) => {
    if (event.detail) element.blur();
    act();
  });
}

for (const button of document.querySelectorAll("main [data-choice]")) {
  onClick(button, () => choose(button.dataset.choice));
}
onClick(by("undo"), undo);
onClick(by("pause"), () => player.toggle());
onClick(by("replay"), () => player.replay());
by("seek").addEventListener("input", () => player.seek(by("seek").value / 1000, true));
by("seek").addEventListener("change", () => {
  player.seek(by("seek").value / 1000, false);
  by("seek").blur();
});

// --- who judges ---

function answered(dialog) {
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

async function askName(judges) {
  by("typed").hidden = by("typed").disabled = Boolean(judges);
  by("listed").hidden = !judges;
  by("listed").replaceChildren(...(judges ?? []).map((name) => new Option(name, name)));
  const field = judges ? by("listed") : by("typed");
  if (judge) field.value = judge;
  do {
    await answered(by("name"));
    judge = field.value.trim();
  } while (!judge);
  localStorage.setItem("judge", judge);
}

async function begin() {
  translate();
  const { question, judges, results } = await call("GET", "/api/start");
  document.title = question ?? words.question;
  for (const element of document.querySelectorAll(".question")) element.textContent = document.title;
  by("results").hidden = !results;
  const start = async () => {
    by("judge").textContent = judge;
    [queue, judged, round] = [[], [], null];
    try {
      await show();
    } catch (error) {
      notice(`${words.refused} ${error.message}`);
    }
  };
  onClick(by("judge"), async () => {
    player.attach([]);
    await askName(judges);
    await start();
  });
  judge = localStorage.getItem("judge") ?? "";
  if (!judge || (judges && !judges.includes(judge))) await askName(judges);
  await start();
}

begin();
