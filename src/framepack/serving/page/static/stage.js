// The video that is looked at: while it is made, when it is there, and beside another one.

import { ask, call, duration, fill, make, say, text } from "./dom.js";
import { Growing, grows } from "./growing.js";
import { Player } from "./player.js";

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

export function content(id) {
  return `v1/videos/${id}/content`;
}

export function preview(job, section) {
  return `v1/videos/${job.id}/previews/${section}`;
}

/** A section's picture: the middle one of those there are, or null. */
export function thumbnail(job) {
  const there = job.framepack.progress.previews ?? [];
  return there.length ? preview(job, there[there.length >> 1]) : null;
}

/** What is going on with a video, in a line. */
export function state(job, waiting = 0) {
  const { status, wish, progress } = job.framepack;
  if (status === "queued") return say(waiting === 1 ? "next" : "queued");
  if (status !== "in_progress") return say(status);
  if (wish === "pause") return say("pausing");
  if (wish === "cancel") return say("cancelling");
  if (progress.stage === "sampling") {
    const section = Math.min(progress.section + 1, progress.sections);
    return say("stage_sampling", { section, sections: progress.sections, step: progress.step, steps: progress.steps });
  }
  return say(progress.stage === "decoding" ? "stage_decoding" : "stage_loading");
}

/** The picture of one video, kept as it is while news of it come. */
class Screen {
  constructor() {
    this.video = make("video", { controls: true, loop: true, muted: true, playsInline: true, autoplay: !still });
    this.waits = make("p", { className: "waits" }, say("soon"));
    this.element = make("div", { className: "screen" }, this.video, this.waits);
    this.shown = "";
  }

  show(job) {
    const { progress, status } = job.framepack;
    const [width, height] = (progress.size ?? "").split("x").map(Number);
    if (height) this.element.style.setProperty("--ratio", width / height);
    const picture = thumbnail(job);
    if (picture) this.video.poster = picture;
    let kind = "";
    if (status === "completed") kind = "whole";
    else if (progress.shown) kind = progress.rough ? `rough ${progress.shown}` : "growing";
    this.video.hidden = !kind && !picture;
    this.waits.hidden = !this.video.hidden;
    text(this.waits, status === "failed" || status === "cancelled" ? state(job) : say("soon"));
    const shown = `${job.id} ${kind}`;
    if (shown !== this.shown) {
      const same = this.shown.split(" ")[0] === job.id;
      this.#load(job, kind, same);
      this.shown = shown;
    }
    if (this.growing && kind === "growing") this.growing.pull(progress.shown).catch(() => {});
  }

  #load(job, kind, same) {
    const { video } = this;
    const [time, paused] = same && video.readyState ? [video.currentTime, video.paused] : [0, still];
    this.growing?.close();
    this.growing = null;
    if (!kind) {
      video.removeAttribute("src");
      video.load();
    } else if (kind === "growing" && grows) {
      this.growing = new Growing(video, content(job.id));
    } else {
      // The address tells browsers what of it they may have kept.
      video.src = `${content(job.id)}?of=${encodeURIComponent(kind)}`;
    }
    if (!kind) return;
    video.addEventListener("loadedmetadata", () => {
      if (time) video.currentTime = Math.min(time, video.duration || time);
      if (!paused) video.play().catch(() => {});
    }, { once: true });
  }

  /** Forget what is shown. */
  clear() {
    this.shown = "";
    this.growing?.close();
    this.growing = null;
    this.video.removeAttribute("src");
    this.video.load();
  }
}

export class Stage {
  /** onact(name, job): what is to be done with the video on show. */
  constructor(onact) {
    this.onact = onact;
    this.screen = new Screen();
    this.title = make("h2");
    this.state = make("p", { className: "state" });
    this.bar = make("progress", { max: 1 });
    this.grown = make("p", { className: "grown" });
    this.fault = make("p", { className: "wrong", role: "alert" });
    this.actions = make("div", { className: "actions" });
    this.strip = make("div", { className: "strip" });
    this.stripTitle = make("h3", {}, say("sections"), make("small"));
    this.details = make("dl");
    this.notes = make("ul", { className: "notes" });
    const more = make("details", { className: "told" }, make("summary", {}, say("settings")), this.details, this.notes);
    this.one = make(
      "section",
      { id: "stage" },
      this.screen.element,
      make("div", { className: "caption" }, this.title, this.state, this.bar, this.grown, this.fault),
      this.actions,
      this.stripTitle,
      this.strip,
      more,
    );
    this.empty = make(
      "section",
      { id: "empty" },
      make("div", { className: "frames" }, make("i"), make("i"), make("i")),
      make("h2", {}, say("empty")),
      make("p", {}, say("empty_how")),
    );
    this.element = make("div", {}, this.empty);
    this.sections = new Map();
    this.told = "";
  }

  show(job, waiting) {
    if (!job) {
      this.screen.clear();
      return fill(this.element, this.empty);
    }
    const { progress, status } = job.framepack;
    const made = status === "in_progress";
    this.one.dataset.video = job.id;
    this.one.dataset.status = status;
    text(this.title, job.prompt || "–");
    this.title.title = job.prompt;
    const left = made && progress.seconds_left ? say("left", { time: duration(progress.seconds_left) }) : null;
    text(this.state, [state(job, waiting), left].filter(Boolean).join(" · "));
    this.bar.hidden = !["in_progress", "paused"].includes(status);
    this.bar.value = progress.fraction ?? 0;
    this.#grown(job);
    text(this.fault, status === "failed" ? job.error?.message ?? "" : "");
    this.fault.hidden = status !== "failed";
    this.screen.show(job);
    this.#strip(job);
    this.#actions(job);
    this.#details(job);
    fill(this.element, this.one);
  }

  #grown(job) {
    const { progress, status } = job.framepack;
    const shown = status !== "completed" && progress.shown > 0;
    this.grown.hidden = !shown;
    if (!shown) return;
    const seconds = (progress.shown / progress.fps).toFixed(1);
    const all = (progress.frames / progress.fps).toFixed(1);
    text(this.grown, progress.rough ? say("rough") : say("grows", { seconds, all }));
  }

  #strip(job) {
    const { progress, status } = job.framepack;
    const there = progress.previews ?? [];
    const whole = status === "completed";
    const key = `${job.id} ${whole}`;
    if (this.stripOf !== key) {
      this.sections.clear();
      this.stripOf = key;
    }
    for (const section of there) {
      if (this.sections.has(section)) continue;
      const label = say("section", { n: section + 1 });
      const picture = make("img", { src: preview(job, section), alt: label, loading: "lazy" });
      const number = make("span", {}, String(section + 1));
      this.sections.set(section, whole
        ? make("button", { type: "button", title: say("redo", { n: section + 1 }),
          onclick: () => this.onact("redo", job, section) }, picture, number)
        : make("span", { className: "still", title: label }, picture, number));
    }
    const missing = Math.max(0, Math.min((progress.sections ?? 0) - there.length, 60));
    if (this.missing?.length !== missing) {
      this.missing = Array.from({ length: missing }, () => make("span", { className: "missing" }));
    }
    const redone = job.framepack.redo;
    for (const [section, element] of this.sections) element.classList.toggle("redone", section === redone);
    fill(this.strip, ...there.map((section) => this.sections.get(section)), ...this.missing);
    this.strip.hidden = this.stripTitle.hidden = !there.length && !missing;
    text(this.stripTitle.querySelector("small"), whole ? say("sections_how") : "");
  }

  #actions(job) {
    const { status, wish } = job.framepack;
    const key = `${job.id} ${status} ${wish}`;
    if (this.actionsOf === key) return;
    this.actionsOf = key;
    const button = (name, className = "") =>
      make("button", { type: "button", name, className, onclick: () => this.onact(name, job) }, say(name));
    const buttons = [];
    if (status === "completed") {
      buttons.push(make("a", { className: "button", href: content(job.id), download: `${job.id}.mp4` }, say("download")));
      buttons.push(button("extend"), button("compare"));
    }
    if (["queued", "in_progress"].includes(status) && !wish) buttons.push(button("pause"));
    if (status === "paused" || wish === "pause") buttons.push(button("resume"));
    if (["queued", "in_progress", "paused"].includes(status) && wish !== "cancel") buttons.push(button("cancel"));
    buttons.push(button("reuse"), button("delete", "quiet"));
    fill(this.actions, ...buttons);
  }

  #details(job) {
    const { asked, progress } = job.framepack;
    const told = JSON.stringify([asked, progress.notes, progress.size, progress.context_tokens]);
    if (told === this.told) return;
    this.told = told;
    const lines = {
      prompt: job.prompt,
      negative_prompt: asked.negative_prompt,
      model: job.model,
      method: asked.method ?? say("auto"),
      size: progress.size ?? asked.size ?? say("auto"),
      seconds: progress.frames ? String(progress.frames / progress.fps) : asked.seconds,
      seed: asked.seed ?? 0,
      steps: progress.steps || asked.steps || say("auto"),
      guidance: asked.guidance ?? say("auto"),
      lora: asked.loras?.map(([name, weight]) => `${name} × ${weight}`).join(", "),
    };
    const rows = Object.entries(lines).filter(([, value]) => value !== undefined && value !== "" && value !== null);
    this.details.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, say(name)), make("dd", {}, String(value))]));
    this.notes.replaceChildren(...(progress.notes ?? []).map((note) => make("li", {}, note)));
  }
}

/** Two videos side by side, on one clock. */
export class Pair {
  constructor(onend) {
    this.videos = [0, 1].map(() => make("video", { muted: true, playsInline: true, preload: "auto" }));
    this.titles = [0, 1].map(() => make("figcaption"));
    const figures = [0, 1].map((side) => make("figure", {}, this.videos[side], this.titles[side]));
    this.seek = make("input", { type: "range", min: 0, max: 1000, value: 0, ariaLabel: say("position") });
    this.player = new Player((fraction) => {
      if (!this.player.held) this.seek.value = 1000 * fraction;
    });
    this.seek.addEventListener("input", () => this.player.seek(this.seek.value / 1000, true));
    this.seek.addEventListener("change", () => this.player.seek(this.seek.value / 1000, false));
    const play = make("button", { type: "button", name: "play", onclick: () => this.player.toggle() }, say("play"));
    const end = make("button", { type: "button", name: "compare_end", onclick: onend }, say("compare_end"));
    this.element = make(
      "section",
      { id: "pair" },
      make("div", { className: "both" }, ...figures),
      make("div", { className: "clock" }, this.seek),
      make("div", { className: "actions" }, play, end),
    );
  }

  async show(jobs) {
    const ready = jobs.map((job, side) => new Promise((resolve) => {
      this.videos[side].addEventListener("loadeddata", resolve, { once: true });
      this.videos[side].src = content(job.id);
      const { seed } = job.framepack.asked;
      text(this.titles[side], `${say("seed")} ${seed ?? 0} · ${job.prompt}`);
    }));
    await Promise.all(ready);
    this.player.attach(this.videos);
    this.player.playing = !still;
  }

  close() {
    this.player.attach([]);
  }
}

/** What a button of the stage asks for, put to the service. Gives the new video, if there is one. */
export async function act(name, job, section) {
  if (name === "redo") {
    const values = await ask({
      title: say("redo", { n: section + 1 }),
      how: say("redo_how"),
      picture: preview(job, section),
      yes: say("begin"),
      fields: [
        { name: "prompt", label: say("redo_prompt"), rows: 2 },
        { name: "seed", label: say("seed"), type: "number", min: 0, value: Math.floor(Math.random() * 2 ** 31) },
        { name: "dependents", label: say("dependents"), type: "checkbox" },
      ],
    });
    if (!values) return null;
    const asked = { section: section + 1, dependents: "dependents" in values };
    if (values.prompt.trim()) asked.prompt = values.prompt.trim();
    if (values.seed !== "") asked.seed = Number(values.seed);
    return call("POST", `videos/${job.id}/redo`, asked);
  }
  if (name === "extend") {
    // Times in a text count from the start of the whole video: those of the first part mean nothing later.
    const value = /\[\s*\d/.test(job.prompt) ? "" : job.prompt;
    const values = await ask({
      title: say("extend"),
      how: say("extend_how"),
      yes: say("begin"),
      fields: [
        { name: "prompt", label: say("prompt"), rows: 3, value, required: true },
        { name: "seconds", label: say("more_seconds"), type: "number", min: 0.1, step: "any", value: 4, required: true },
      ],
    });
    return values && call("POST", `videos/${job.id}/extend`, { prompt: values.prompt, seconds: Number(values.seconds) });
  }
  if (name === "delete") {
    const sure = await ask({ title: say("delete"), how: say("delete_how"), yes: say("delete"), danger: true });
    if (sure) await call("DELETE", `videos/${job.id}`);
    return null;
  }
  await call("POST", `videos/${job.id}/${name}`);
  return null;
}
