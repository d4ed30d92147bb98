// What the page says, in the browser's language where it is one of these.

const WORDS = {
  en: {
    question: "Which one is better overall?",
    this: "This one",
    tie: "About the same",
    skip: "Skip",
    undo: "Undo",
    pause: "Pause or play",
    replay: "From the start",
    seek: "Position",
    results: "Results",
    keys: "← or A, → or L: this one · T or ↓: about the same · S: skip · U: undo · Space: pause · R: from the start",
    how: "You will see two videos at a time. Watch both, then choose one; where you see no difference, say so. "
      + "You can stop at any time: every answer is saved as you give it.",
    name: "Your name, or any name",
    start: "Start",
    thanks: "That was all of them. Thank you!",
    all: "You have seen every pair once. You may close the page, or judge them a second time.",
    again: "Go on",
    count: (done, total) => `${done} of ${total}`,
    lost: "The server cannot be reached. Your answer is kept here, and sent as soon as it is back.",
    broken: "A video cannot be played here. Skip this pair.",
    refused: "The server does not accept this:",
  },
  ja: {
    question: "全体として、どちらの動画が良いですか?",
    this: "こちら",
    tie: "同じくらい",
    skip: "スキップ",
    undo: "元に戻す",
    pause: "一時停止/再生",
    replay: "最初から",
    seek: "位置",
    results: "結果",
    keys: "← または A、→ または L:こちら · T または ↓:同じくらい · S:スキップ · U:元に戻す · スペース:一時停止 · R:最初から",
    how: "動画が2つずつ表示されます。両方を見てから、どちらかを選んでください。"
      + "差がなければ「同じくらい」を選びます。回答はその都度保存されるので、いつでもやめられます。",
    name: "お名前(ニックネームでもかまいません)",
    start: "はじめる",
    thanks: "これで全部です。ありがとうございました!",
    all: "すべての組を1回ずつ評価しました。ページを閉じても、もう一度評価してもかまいません。",
    again: "続ける",
    count: (done, total) => `${total}組中 ${done}組`,
    lost: "サーバーに接続できません。回答はここに保管し、つながりしだい送信します。",
    broken: "再生できない動画があります。この組はスキップしてください。",
    refused: "サーバーが受け付けませんでした:",
  },
};

const language = navigator.languages?.map((tag) => tag.slice(0, 2)).find((tag) => tag in WORDS) ?? "en";

export const words = WORDS[language];

/** Fill in every element that names its text by data-text, or its title by data-title. */
export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = words[element.dataset.text];
  }
  for (const element of document.querySelectorAll("[data-title]")) {
    element.title = words[element.dataset.title];
    element.setAttribute("aria-label", element.title);
  }
}
