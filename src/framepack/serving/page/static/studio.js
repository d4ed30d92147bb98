// What is seen of videos: the one on show, those that wait, and those that are there. All of it is the
// service's; this page only asks for news, and keeps which video is looked at.

import { call, client, fill, icon, language, languages, make, say, tell, text } from "./dom.js";
import { Pair, Stage, act, content, state, thumbnail } from "./stage.js";

const SOON = 1000; // milliseconds between two looks while something is being made
const LATER = 4000; // and otherwise
const ACTIVE = ["queued", "in_progress", "paused"];
const SHOWN = "framepack-shown";

let jobs = [];
let older = [];
let tag = null;
let shown = sessionStorage.getItem(SHOWN);
let comparing = null; // the first of two videos, while the second is chosen
let trigger = () => {};
let stage, pair, place, queue, history, more, hint, timer;
const rows = new Map(); // by id, each with its element and update(job)

export function begin(element, fire) {
  trigger = fire;
  header();
  stage = new Stage(onact);
  pair = new Pair(() => { pair.close(); show(shown); });
  hint = make("p", { className: "hint", hidden: true }, say("compare_with"));
  queue = make("div", { id: "queue" });
  history = make("div", { id: "history" });
  more = make("button", { type: "button", className: "quiet", hidden: true, onclick: load }, say("older"));
  place = make("div", {}, stage.element);
  element.querySelector("#studio").replaceChildren(
    make("div", { id: "told", role: "status", hidden: true }),
    place,
    hint,
    make("h3", { className: "of-queue" }, say("queue")),
    queue,
    make("h3", { className: "of-history" }, say("history")),
    history,
    more,
  );
  // Called by the form, when it has taken over settings and when it has had a video made.
  window.framepack.reused = () => tell(say("was_reused"));
  window.framepack.started = async () => {
    tell(say("was_started"));
    await look();
    if (jobs.length) show(jobs[0].id, true);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
}

function header() {
  const choice = make(
    "select",
    {
      ariaLabel: say("language"),
      name: "language",
      onchange: () => {
        document.cookie = `framepack_language=${choice.value}; path=/; max-age=31536000; samesite=strict`;
        location.reload();
      },
    },
    ...Object.entries(languages).map(([code, name]) => make("option", { value: code, selected: code === language }, name)),
  );
  const out = client && make(
    "form",
    { method: "post", action: "logout" },
    make("button", { className: "quiet", title: client }, say("sign_out")),
  );
  const head = document.querySelector("#head");
  fill(head, make("h1", {}, "framepack ", make("span", {}, say("title").replace("framepack", "").trim())), choice, out);
}

/** Ask for news, again and again. */
async function look() {
  clearTimeout(timer);
  try {
    const answer = await fetch("page/jobs", { headers: tag ? { "if-none-match": tag } : {}, cache: "no-store" });
    if (answer.status === 200) {
      jobs = (await answer.json()).data;
      tag = answer.headers.get("etag");
      const ids = new Set(jobs.map((job) => job.id));
      older = older.filter((job) => !ids.has(job.id));
      draw();
    } else if (answer.status === 401) {
      location.assign("login");
    } else if (answer.status !== 304) {
      tell(say("lost"));
    }
  } catch {
    tell(say("lost"));
  }
  const busy = jobs.some((job) => ["queued", "in_progress"].includes(job.framepack.status));
  clearTimeout(timer);
  timer = setTimeout(look, busy && !document.hidden ? SOON : LATER);
}

async function load() {
  const last = [...jobs, ...older].at(-1);
  const page = await call("GET", `videos?limit=30&after=${last.id}`);
  if (!page) return;
  older.push(...page.data);
  more.dataset.all = page.has_more ? "" : "yes";
  draw();
}

function waiting() {
  return jobs
    .filter((job) => ACTIVE.includes(job.framepack.status))
    .sort((a, b) => (a.framepack.place ?? -1) - (b.framepack.place ?? -1));
}

function draw() {
  const active = waiting();
  const ended = [...jobs, ...older].filter((job) => !ACTIVE.includes(job.framepack.status));
  const all = new Set([...active, ...ended].map((job) => job.id));
  for (const id of rows.keys()) if (!all.has(id)) rows.delete(id);
  const row = (job, kind, index) => {
    let there = rows.get(job.id);
    if (there?.kind !== kind) rows.set(job.id, (there = kind === "queue" ? queued(job) : past(job)));
    there.update(job, index);
    return there.element;
  };
  fill(queue, ...active.map((job, index) => row(job, "queue", index)));
  fill(history, ...ended.map((job) => row(job, "history")));
  document.querySelector(".of-queue").hidden = !active.length;
  document.querySelector(".of-history").hidden = !ended.length;
  more.hidden = jobs.length < 40 || more.dataset.all === "yes";
  if (place.firstChild === stage.element) current();
}

function current() {
  const active = waiting();
  const job = [...jobs, ...older].find((each) => each.id === shown) ?? active[0] ?? jobs[0];
  shown = job?.id ?? null;
  stage.show(job, active.filter((each) => each.framepack.status === "queued").indexOf(job) + 1);
  for (const [id, row] of rows) row.element.classList.toggle("chosen", id === shown);
}

function show(id, scroll = false) {
  if (comparing && id !== comparing) return compare(id);
  shown = id;
  if (id) sessionStorage.setItem(SHOWN, id);
  pair.close();
  fill(place, stage.element);
  current();
  if (scroll) reveal();
}

/** Bring what is on show before the reader's eyes, where it is not. */
function reveal() {
  const { top } = place.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) place.scrollIntoView({ behavior: "smooth", block: "start" });
}

async function compare(id) {
  const both = [comparing, id].map((each) => [...jobs, ...older].find((job) => job.id === each));
  if (both.some((job) => job?.framepack.status !== "completed")) return tell(say("wait_for_it"));
  comparing = null;
  hint.hidden = true;
  fill(place, pair.element);
  reveal();
  await pair.show(both);
}

async function onact(name, job, section) {
  if (name === "reuse") {
    trigger("reuse", { id: job.id });
    document.querySelector("#ask").scrollIntoView({ behavior: "smooth", block: "start" });
    return;
  }
  if (name === "compare") {
    comparing = comparing ? null : job.id;
    hint.hidden = !comparing;
    if (comparing) hint.scrollIntoView({ behavior: "smooth", block: "center" });
    return;
  }
  const made = await act(name, job, section);
  await look();
  if (made) show(made.id, true);
}

/** A row of the queue. */
function queued(job) {
  let now = job;
  const title = make("button", { type: "button", className: "title", onclick: () => show(now.id, true) });
  const line = make("small");
  const bar = make("progress", { max: 1 });
  const picture = make("img", { alt: "", hidden: true });
  const move = (by) => {
    const places = waiting().filter((each) => each.framepack.place !== null).map((each) => each.id);
    const from = places.indexOf(now.id);
    const before = by < 0 ? places[from - 1] : places[from + 2] ?? null;
    return call("POST", `videos/${now.id}/move`, { before }).then(look);
  };
  const buttons = {
    up: icon("up", () => move(-1)),
    down: icon("down", () => move(1)),
    pause: icon("pause", () => onact("pause", now)),
    resume: icon("resume", () => onact("resume", now)),
    cancel: icon("cancel", () => onact("cancel", now)),
  };
  const element = make(
    "article",
    {},
    make("div", { className: "thumb" }, picture),
    make("div", { className: "what" }, title, line, bar),
    make("div", { className: "buttons" }, ...Object.values(buttons)),
  );
  return {
    kind: "queue",
    element,
    update(next) {
      now = next;
      const { status, wish, progress, place: at } = next.framepack;
      element.dataset.video = next.id;
      element.dataset.status = status;
      const places = waiting().filter((each) => each.framepack.place !== null).map((each) => each.id);
      const rank = places.indexOf(next.id);
      text(title, next.prompt || "–");
      text(line, state(next, waiting().filter((each) => each.framepack.status === "queued").indexOf(next) + 1));
      bar.value = progress.fraction ?? 0;
      bar.hidden = !progress.fraction;
      const source = thumbnail(next);
      picture.hidden = !source;
      if (source && picture.getAttribute("src") !== source) picture.src = source;
      buttons.up.hidden = at === null || rank < 1;
      buttons.down.hidden = at === null || rank === places.length - 1;
      buttons.pause.hidden = status === "paused" || Boolean(wish);
      buttons.resume.hidden = !(status === "paused" || wish === "pause");
      buttons.cancel.hidden = wish === "cancel";
    },
  };
}

/** Videos of the history begin to load when they come into view. */
const inView = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    target.src = target.dataset.source;
    inView.unobserve(target);
  }
});

/** A card of the history; its video moves under the pointer. */
function past(job) {
  let now = job;
  const done = job.framepack.status === "completed";
  const picture = done
    ? make("video", { muted: true, loop: true, playsInline: true, preload: "metadata", tabIndex: -1 })
    : make("img", { alt: "", loading: "lazy" });
  if (done) {
    picture.dataset.source = `${content(job.id)}?of=whole#t=0.01`;
    inView.observe(picture);
  }
  const title = make("strong");
  const line = make("small");
  const element = make(
    "button",
    {
      type: "button",
      className: "card",
      onclick: () => show(now.id, true),
      onpointerenter: () => done && picture.play().catch(() => {}),
      onpointerleave: () => done && picture.pause(),
    },
    make("div", { className: "thumb" }, picture),
    title,
    line,
  );
  return {
    kind: "history",
    element,
    update(next) {
      now = next;
      const { status, progress, asked } = next.framepack;
      element.dataset.video = next.id;
      element.dataset.status = status;
      const source = thumbnail(next);
      if (!done) picture.hidden = !source;
      if (!done && source && picture.getAttribute("src") !== source) picture.src = source;
      text(title, next.prompt || "–");
      const when = new Intl.DateTimeFormat(language, { dateStyle: "short", timeStyle: "short" });
      const seconds = progress.frames ? say("time_s", { n: progress.frames / progress.fps }) : null;
      const parts = status === "completed" ? [seconds, `${say("seed")} ${asked.seed ?? 0}`] : [say(status)];
      text(line, [...parts, when.format(new Date(next.created_at * 1000))].filter(Boolean).join(" · "));
    },
  };
}
