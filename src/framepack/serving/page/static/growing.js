// A video that is watched while it is made: whole fragments are handed to the browser as they come.

const HEAD = 8; // bytes of a box's size and kind

/** The length of all whole boxes at the start of some bytes. Free space at the end becomes a fragment later. */
function whole(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  while (at + HEAD <= bytes.length) {
    const size = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + HEAD));
    if (size < HEAD || at + size > bytes.length || kind === "free") break;
    at += size;
  }
  return at;
}

/** The codec as the browser wants to hear of it, from the avcC box of the file's header; null if there is none. */
function codec(bytes) {
  const mark = [0x61, 0x76, 0x63, 0x43];
  for (let at = 0; at + HEAD <= bytes.length; at++) {
    if (mark.every((byte, index) => bytes[at + index] === byte)) {
      const hex = [...bytes.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0"));
      return `video/mp4; codecs="avc1.${hex.join("")}"`;
    }
  }
  return null;
}

export class Growing {
  /** Show the growing file at `url` in `video`; pull(frames) takes what has come since, once for each number. */
  constructor(video, url) {
    this.url = url;
    this.at = this.frames = 0; // bytes that are taken, and frames that were told of then
    this.source = new MediaSource();
    this.open = new Promise((resolve) => this.source.addEventListener("sourceopen", resolve, { once: true }));
    this.address = URL.createObjectURL(this.source);
    video.src = this.address;
    this.busy = null;
  }

  pull(frames) {
    if (frames === this.frames) return Promise.resolve();
    this.busy ??= this.#pull(frames).finally(() => { this.busy = null; });
    return this.busy;
  }

  close() {
    URL.revokeObjectURL(this.address);
  }

  async #pull(frames) {
    const answer = await fetch(this.url, { headers: { range: `bytes=${this.at}-` }, cache: "no-store" });
    // 416: nothing new. Another header: the finished video has taken its place, which studio.js learns by itself.
    if (answer.status !== 206 || answer.headers.get("cache-control") !== "no-store") return;
    const bytes = new Uint8Array(await answer.arrayBuffer());
    const length = whole(bytes);
    if (!length) return;
    await this.open;
    if (!this.buffer) {
      const kind = codec(bytes);
      if (kind === null || !MediaSource.isTypeSupported(kind)) return;
      this.buffer = this.source.addSourceBuffer(kind);
    }
    this.at += length;
    this.frames = frames;
    await new Promise((resolve, reject) => {
      this.buffer.addEventListener("updateend", resolve, { once: true });
      this.buffer.addEventListener("error", reject, { once: true });
      this.buffer.appendBuffer(bytes.subarray(0, length));
    });
    // As if it ended here, so that it starts over here; the next bytes open it again.
    if (this.source.readyState === "open") this.source.endOfStream();
  }
}

export const grows = "MediaSource" in window;
