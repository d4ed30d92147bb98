"""All that the page says, in its three languages, and which of them somebody reads."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = {"en": "English", "ja": "日本語", "zh-CN": "中文"}
"""By the tags that browsers have for them; the first is for everybody else."""
COOKIE = "framepack_language"
PREFIX = "framepack_"
"""Of these texts among those of Gradio's own parts."""

WORDS: dict[str, tuple[str, str, str]] = {
    # The head of the page, and the login
    "title": ("framepack studio", "framepack スタジオ", "framepack 工作室"),
    "language": ("Language", "言語", "语言"),
    "sign_in": ("Sign in", "サインイン", "登录"),
    "sign_out": ("Sign out", "サインアウト", "退出"),
    "token": ("Token", "トークン", "令牌"),
    "sign_in_how": (
        "Enter the token that whoever runs this service gave you.",
        "このサービスの管理者から受け取ったトークンを入力してください。",
        "请输入本服务管理员提供的令牌。",
    ),
    "sign_in_wrong": (
        "This token is not known. Check it and try again.",
        "このトークンは登録されていません。確認して、もう一度入力してください。",
        "该令牌无效,请检查后重试。",
    ),
    # What is asked for
    "image": ("Start picture (optional)", "開始画像(省略可)", "起始图片(可选)"),
    "prompt": ("What happens", "動画の内容", "视频内容"),
    "prompt_hint": (
        "A red heart glides slowly to the right over lavender fields at sunset.",
        "夕暮れのラベンダー畑の上を、赤いハートがゆっくり右へ進む。",
        "日落时分,一颗红心在薰衣草田上空缓缓向右滑行。",
    ),
    "examples": ("Try this one", "例を使う", "试试这个例子"),
    "storyboard": ("Storyboard", "ストーリーボード", "分镜"),
    "storyboard_how": (
        "What happens later, and from which second on. The text above holds until the first of these.",
        "途中から内容を変えるときに、何秒からどうなるかを書きます。最初の変更までは上の内容のままです。",
        "填写从第几秒开始发生什么。在第一条之前,按上面的内容进行。",
    ),
    "from_second": ("From second", "開始(秒)", "从第几秒"),
    "then": ("What happens then", "そのときの内容", "此后的内容"),
    "add_scene": ("Add a scene", "シーンを追加", "添加场景"),
    "keyframes": ("Key pictures", "キーフレーム", "关键帧"),
    "keyframes_how": (
        "Pictures that the video shows at their times, and one that it ends with.",
        "指定した時刻に表示する画像と、最後に表示する画像です。",
        "视频在指定时刻显示的图片,以及结尾的图片。",
    ),
    "keyframe": ("Picture", "画像", "图片"),
    "at_second": ("At second", "時刻(秒)", "在第几秒"),
    "add_keyframe": ("Add a picture", "画像を追加", "添加图片"),
    "end_image": ("Last picture", "最後の画像", "结尾图片"),
    "from_clip": ("Go on from a video of yours (MP4)", "手元の動画の続きを作る(MP4)", "续写你的视频(MP4)"),
    "seconds": ("Length (s)", "長さ(秒)", "时长(秒)"),
    "size": ("Size", "サイズ", "尺寸"),
    "auto": ("automatic", "自動", "自动"),
    "method": ("Method", "方式", "方法"),
    "seed": ("Seed", "シード", "种子"),
    "steps": ("Steps", "ステップ数", "步数"),
    "guidance": ("Guidance", "ガイダンス", "引导强度"),
    "more": ("More settings", "その他の設定", "更多设置"),
    "model": ("Model", "モデル", "模型"),
    "lora": ("LoRA", "LoRA", "LoRA"),
    "weight": ("Weight", "強さ", "权重"),
    "none": ("none", "なし", "无"),
    "negative_prompt": ("What not to show", "入れたくないもの", "不想出现的内容"),
    "loop": ("The end leads back to the start", "終わりを始まりにつなげる", "首尾相接"),
    "start": ("Make the video", "動画を作る", "生成视频"),
    "read_back": ("Settings from an MP4", "MP4から設定を読み込む", "从 MP4 读取设置"),
    "read_back_how": (
        "Drop a video that was made with framepack: its settings are read back into this form.",
        "framepackで作った動画をここに置くと、その設定がこのフォームに入ります。",
        "把用 framepack 生成的视频拖到这里,即可把设置读回表单。",
    ),
    "was_read": ("Settings were read back.", "設定を読み込みました。", "设置已读取。"),
    "no_settings": (
        "This file holds no settings of framepack: choose an MP4 that was made with it.",
        "このファイルにはframepackの設定がありません。framepackで作ったMP4を選んでください。",
        "该文件不含 framepack 的设置,请选择用 framepack 生成的 MP4。",
    ),
    "pictures_again": (
        "Pictures, clips and LoRAs are not in the file: choose them again.",
        "画像・動画・LoRAはファイルに含まれません。もう一度選んでください。",
        "文件中不含图片、视频和 LoRA,请重新选择。",
    ),
    "refused": ("This cannot be made", "この内容では作れません", "无法生成"),
    "was_started": ("The video is in the queue.", "順番待ちに入れました。", "视频已加入队列。"),
    # What it will take
    "cost": (
        "{frames} frames of {size} in {sections} sections · {tokens} tokens of context",
        "{size}・{frames}フレーム、{sections}セクション・コンテキスト{tokens}トークン",
        "{size},{frames} 帧,{sections} 个片段 · 上下文 {tokens} 个词元",
    ),
    "cost_measured": (
        "about {time}, {memory} GB of memory",
        "約{time}、メモリ{memory} GB",
        "约 {time},内存 {memory} GB",
    ),
    "cost_unmeasured": (
        "time and memory are known after the first video of this model",
        "時間とメモリは、このモデルの最初の動画ができると分かります",
        "用该模型生成第一个视频后,即可得知所需时间和内存",
    ),
    "time_s": ("{n} s", "{n}秒", "{n} 秒"),
    "time_min": ("{n} min", "{n}分", "{n} 分钟"),
    "time_h": ("{n} h", "{n}時間", "{n} 小时"),
    # Watching
    "empty": (
        "Your videos will be shown here.",
        "作った動画はここに表示されます。",
        "你的视频会显示在这里。",
    ),
    "empty_how": (
        "Describe what happens, choose a start picture if you like, and make the first one.",
        "内容を書き、必要なら開始画像を選んで、最初の動画を作ってみましょう。",
        "写下视频内容,也可以选一张起始图片,生成第一个视频吧。",
    ),
    "queue": ("Queue", "順番待ち", "队列"),
    "history": ("History", "履歴", "历史"),
    "older": ("Older ones", "もっと前のもの", "更早的"),
    "queued": ("waits", "待機中", "等待中"),
    "next": ("is next", "次に開始", "即将开始"),
    "in_progress": ("is being made", "作成中", "生成中"),
    "pausing": ("is being paused", "一時停止します", "正在暂停"),
    "cancelling": ("is being cancelled", "中止します", "正在取消"),
    "paused": ("is paused", "一時停止中", "已暂停"),
    "completed": ("completed", "完成", "已完成"),
    "failed": ("failed", "失敗", "失败"),
    "cancelled": ("cancelled", "中止", "已取消"),
    "stage_loading": ("The model is loaded", "モデルを読み込んでいます", "正在加载模型"),
    "stage_sampling": (
        "Section {section} of {sections}, step {step} of {steps}",
        "セクション {section}/{sections}、ステップ {step}/{steps}",
        "片段 {section}/{sections},步骤 {step}/{steps}",
    ),
    "stage_decoding": ("Last frames", "仕上げ", "正在收尾"),
    "left": ("{time} left", "残り約{time}", "剩余约 {time}"),
    "soon": (
        "The first frames will be shown as soon as they are there.",
        "最初のフレームができしだい表示します。",
        "首批画面生成后会立即显示。",
    ),
    "grows": (
        "So far: {seconds} of {all} s",
        "ここまで:{seconds}/{all}秒",
        "已生成:{seconds}/{all} 秒",
    ),
    "rough": ("A rough preview", "仮のプレビュー", "粗略预览"),
    "sections": ("Sections", "セクション", "片段"),
    "sections_how": (
        "Choose one to make it again.",
        "選ぶと、その部分だけ作り直せます。",
        "点选一个即可重新生成该片段。",
    ),
    "section": ("Section {n}", "セクション {n}", "片段 {n}"),
    "up": ("Move up", "上へ", "上移"),
    "down": ("Move down", "下へ", "下移"),
    "pause": ("Pause", "一時停止", "暂停"),
    "resume": ("Go on", "再開", "继续"),
    "cancel": ("Cancel", "中止", "取消"),
    "download": ("Download", "ダウンロード", "下载"),
    "reuse": ("Use settings", "設定を使う", "使用设置"),
    "was_reused": (
        "The form has the settings of that video.",
        "この動画の設定をフォームに入れました。",
        "表单已填入该视频的设置。",
    ),
    "extend": ("Extend", "続きを作る", "续写"),
    "extend_how": (
        "A new video that begins with all of this one, and goes on.",
        "この動画の続きを作り、つながった1本の新しい動画にします。",
        "生成一个新视频:先是整段原视频,然后继续。",
    ),
    "more_seconds": ("Seconds to add", "追加する秒数", "追加秒数"),
    "redo": ("Make section {n} again", "セクション {n} を作り直す", "重新生成片段 {n}"),
    "redo_how": (
        "The rest stays as it is. The result is a new video beside this one.",
        "ほかの部分はそのままで、結果は別の動画として残ります。",
        "其余部分保持不变,结果会另存为一个新视频。",
    ),
    "redo_prompt": (
        "What happens there (empty: as before)",
        "その部分の内容(空欄なら同じ)",
        "该片段的内容(留空则不变)",
    ),
    "dependents": (
        "Also the sections that were made from it",
        "それを元に作られた部分も作り直す",
        "同时重新生成依赖它的片段",
    ),
    "begin": ("Make it", "作る", "生成"),
    "back": ("Not now", "やめる", "取消"),
    "delete": ("Delete", "削除", "删除"),
    "delete_how": (
        "The video and all of its files are gone for good.",
        "動画とそのファイルはすべて消え、元に戻せません。",
        "视频及其所有文件将被永久删除。",
    ),
    "compare": ("Compare", "比べる", "对比"),
    "compare_with": (
        "Choose another video below to see both side by side.",
        "下から比べたい動画を選ぶと、並べて表示します。",
        "请在下方选择另一个视频,并排对比。",
    ),
    "compare_end": ("End the comparison", "比較を終える", "结束对比"),
    "play": ("Play or pause both", "両方を再生/一時停止", "同时播放或暂停"),
    "position": ("Position", "位置", "位置"),
    "settings": ("Settings", "設定", "设置"),
    "notes": ("Notes", "メモ", "备注"),
    "lost": (
        "The service does not answer. The page goes on as soon as it is back.",
        "サービスから応答がありません。復旧しだい表示を再開します。",
        "服务没有响应,恢复后页面会自动继续。",
    ),
    "wait_for_it": ("It is completed first.", "完成してから使えます。", "完成后才能使用。"),
}


def words(language: str) -> dict[str, str]:
    """All texts of one language."""
    place = list(LANGUAGES).index(language)
    return {name: texts[place] for name, texts in WORDS.items()}


def language_of(headers: Mapping[str, str], cookies: Mapping[str, str]) -> str:
    """The language that somebody chose, else the first of those that their browser asks for."""
    chosen = cookies.get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    short = {tag.partition("-")[0]: tag for tag in LANGUAGES}
    asked: list[tuple[float, str]] = []
    for part in headers.get("accept-language", "")[:500].split(","):
        tag, _, weight = part.partition(";")
        try:
            asked.append((float(weight.strip().removeprefix("q=") or 1), tag.strip().lower()))
        except ValueError:
            continue
    for _, tag in sorted(asked, key=lambda each: -each[0]):
        if tag.partition("-")[0] in short:
            return short[tag.partition("-")[0]]
    return next(iter(LANGUAGES))


def seconds_told(seconds: float, said: Mapping[str, str]) -> str:
    """A length of time, as people say it."""
    if seconds < 90:
        return said["time_s"].format(n=max(1, round(seconds)))
    if seconds < 5400:
        return said["time_min"].format(n=round(seconds / 60))
    return said["time_h"].format(n=f"{seconds / 3600:.1f}")
