"""How Gradio's own parts look here: the colours of ``static/studio.css``, fonts of the reader's machine."""

from __future__ import annotations

import gradio as gr

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Hiragino Sans", "Noto Sans CJK JP", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
COLOURS = {
    "body_background_fill": ("#f6f5f2", "#16171a"),
    "body_text_color": ("#1f2328", "#e8e6e1"),
    "body_text_color_subdued": ("#6a6e75", "#9a9da3"),
    "background_fill_primary": ("#ffffff", "#212327"),
    "background_fill_secondary": ("#f6f5f2", "#1b1c20"),
    "block_background_fill": ("#ffffff", "#212327"),
    "block_border_color": ("#dcdad4", "#363a40"),
    "block_label_background_fill": ("#ffffff", "#212327"),
    "block_label_text_color": ("#6a6e75", "#9a9da3"),
    "block_title_text_color": ("#6a6e75", "#9a9da3"),
    "border_color_primary": ("#dcdad4", "#363a40"),
    "border_color_accent": ("#2459c7", "#83aaff"),
    "color_accent_soft": ("#e8eefb", "#26314a"),
    "link_text_color": ("#2459c7", "#83aaff"),
    "input_background_fill": ("#ffffff", "#1b1c20"),
    "input_border_color": ("#dcdad4", "#363a40"),
    "input_border_color_focus": ("#2459c7", "#83aaff"),
    "button_primary_background_fill": ("#2459c7", "#83aaff"),
    "button_primary_background_fill_hover": ("#1c4aa8", "#9dbcff"),
    "button_primary_text_color": ("#ffffff", "#10131a"),
    "button_primary_border_color": ("#2459c7", "#83aaff"),
    "button_secondary_background_fill": ("#ffffff", "#212327"),
    "button_secondary_background_fill_hover": ("#f6f5f2", "#2a2d32"),
    "button_secondary_text_color": ("#1f2328", "#e8e6e1"),
    "button_secondary_border_color": ("#dcdad4", "#363a40"),
    "checkbox_background_color_selected": ("#2459c7", "#83aaff"),
    "checkbox_border_color_selected": ("#2459c7", "#83aaff"),
}
"""Of Gradio's variables, by day and by night."""


def theme() -> gr.themes.Base:
    """The page's theme; nothing of it is fetched from elsewhere."""
    made = gr.themes.Base(font=FONTS, font_mono=MONO, radius_size=gr.themes.sizes.radius_lg)
    day = {name: colours[0] for name, colours in COLOURS.items()}
    night = {f"{name}_dark": colours[1] for name, colours in COLOURS.items()}
    return made.set(
        **day,
        **night,
        block_shadow="none",
        block_border_width="1px",
        input_border_width="1px",
        button_large_radius="10px",
    )
