// Two videos on one clock: they play, pause, seek and start over together.

const TOLERANCE = 0.004; // seconds apart that are let be
const JUMP = 0.2; // seconds apart from which one is set to the other's place, and not sped up or slowed down
const HOLD = 500; // milliseconds that the last frame stays before both start over
const ENOUGH = HTMLMediaElement.HAVE_FUTURE_DATA;

export class Player {
  /** onTick(fraction, playing) is called whenever the screen is drawn. */
  constructor(onTick) {
    this.videos = [];
    this.playing = true;
    this.held = false; // while somebody drags the slider
    this.endedAt = null;
    this.onTick = onTick;
    const tick = (now) => {
      if (this.videos.length) this.#keepTogether(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** Play these two, which have loaded, from their start; nothing for an empty list. */
  attach(videos) {
    for (const video of this.videos) video.pause();
    this.videos = videos;
    this.playing = true;
    this.held = false;
    this.#set(0);
  }

  toggle() {
    this.playing = !this.playing;
  }

  replay() {
    this.#set(0);
    this.playing = true;
  }

  /** Go to a fraction of the longer one's length, and stay there while held. */
  seek(fraction, held) {
    this.held = held;
    this.#set(fraction * this.#length());
  }

  #length() {
    return Math.max(...this.videos.map((video) => video.duration || 0));
  }

  #set(time) {
    this.endedAt = null;
    for (const video of this.videos) {
      video.playbackRate = 1;
      video.currentTime = Math.min(time, video.duration || 0);
    }
  }

  #keepTogether(now) {
    // The longer one is the clock; a shorter one that has ended shows its last frame.
    const [clock, other] = [...this.videos].sort((a, b) => b.duration - a.duration);
    const settled = this.videos.every((video) => !video.seeking && (video.ended || video.readyState >= ENOUGH));
    const run = this.playing && !this.held && settled;
    for (const video of this.videos) {
      if (run && video.paused && !video.ended) video.play().catch(() => {});
      if (!run && !video.paused) video.pause();
    }
    if (settled && !other.ended && !clock.ended) this.#correct(clock, other, run);
    if (clock.ended && other.ended && this.playing && !this.held) {
      this.endedAt ??= now;
      if (now - this.endedAt > HOLD) this.#set(0);
    }
    this.onTick(clock.currentTime / (clock.duration || 1), this.playing);
  }

  #correct(clock, other, run) {
    const apart = clock.currentTime - other.currentTime;
    const target = Math.min(clock.currentTime, other.duration);
    if (Math.abs(apart) > JUMP || (!run && Math.abs(apart) > TOLERANCE)) {
      other.currentTime = target;
      other.playbackRate = 1;
    } else if (Math.abs(apart) > TOLERANCE) {
      other.playbackRate = 1 + Math.max(-0.2, Math.min(0.2, apart * 5));
    } else {
      other.playbackRate = 1;
    }
  }
}
