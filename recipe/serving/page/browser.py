"""What the page asks of a visitor's browser, and what it sends there besides Streamlit's widgets."""

from __future__ import annotations

import base64
import json
from html import escape
from urllib.parse import quote

from recipe.languages import LANGUAGES

# A click on a copy button. The script belongs to the page, not to the frame that brings it, so that the browser lets it
# copy. By http from another machine there is no clipboard, and an old command takes its place.
COPY_SCRIPT = """
document.addEventListener("click", async event => {
  const button = event.target.closest("button[data-copied]");
  if (!button) return;
  const bytes = Uint8Array.from(atob(button.dataset.copied), each => each.charCodeAt(0));
  const text = new TextDecoder().decode(bytes);
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.style.color = "#21a354";
  setTimeout(() => { button.style.color = "inherit"; }, 1500);
});
"""
# A question that is typed. Streamlit drops what is sent while there is no connection, and makes the input anew, empty,
# when the server was started again or the language changes. So nothing is sent then, and what was typed comes back.
DRAFT_SCRIPT = """
let field = null, draft = "";
const isOurs = element => element.closest?.(".stChatInputContainer");
const send = event => {
  if (!isOurs(event.target)) return;
  if (document.querySelector("[data-testid=stConnectionStatus]")) {
    event.preventDefault();
    event.stopImmediatePropagation();
  } else draft = "";
};
document.addEventListener("input", ({target}) => {
  if (isOurs(target)) [field, draft] = [target, target.value];
}, true);
document.addEventListener("keydown", event => {
  if (event.key == "Enter" && !event.shiftKey && !event.isComposing) send(event);
}, true);
document.addEventListener("click", event => { if (event.target.closest("button")) send(event); }, true);
new MutationObserver(() => {
  if (!draft || field.isConnected) return;
  const next = document.querySelector(".stChatInputContainer textarea");
  if (!next) return;
  field = next;
  // Past React's own setter, which would take the value for known and drop the event.
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(next, draft);
  next.dispatchEvent(new Event("input", {bubbles: true}));
}).observe(document.body, {childList: true, subtree: true});
"""
BRING_SCRIPTS = """<script>
const page = window.parent.document;
if (!page.getElementById("page-scripts")) {
  const script = page.createElement("script");
  script.id = "page-scripts";
  script.textContent = SCRIPT;
  page.head.append(script);
}
</script>"""
# Drawn, since a character for it needs an emoji font.
TWO_SHEETS = (
    '<svg width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.5">'
    '<rect x="5.5" y="5.5" width="8" height="8" rx="1.5"></rect><path d="M10.5 3v-.5h-8v8h.5"></path></svg>'
)


def preferred_language() -> str:
    """The first language of the visitor's browser that the page has; Chinese where there is none."""
    from streamlit.web.server.websocket_headers import _get_websocket_headers

    accepted = (_get_websocket_headers() or {}).get("Accept-Language", "")
    return next((tag[:2] for tag in accepted.split(",") if tag[:2] in LANGUAGES), "zh")


def send_running() -> None:
    """Send the browser word that a run has begun; without it, it shows nothing of the run before its end.

    Streamlit 1.24 sends it once, and drops what it has not sent when the next run follows at once, as after two quick
    clicks.
    """
    from streamlit.proto import ForwardMsg_pb2
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    message = ForwardMsg_pb2.ForwardMsg()  # type: ignore[attr-defined]
    message.session_status_changed.script_is_running = True
    if context := get_script_run_ctx():
        context.enqueue(message)


def icon(title: str) -> str:
    """The icon of the browser's tab: a title's first character on a disc, drawn with the fonts of the browser.

    Returns:
        An SVG picture as an address that holds it, so that nothing is fetched.
    """
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><circle cx="32" cy="32" r="32" fill="#3056d3"/>'
        '<text x="32" y="44" font-size="34" font-family="sans-serif" text-anchor="middle" fill="#fff">'
        f"{escape(title[:1].upper())}</text></svg>"
    )
    return f"data:image/svg+xml,{quote(svg)}"


def copy_button(text: str, label: str) -> str:
    """HTML of a button that copies `text`, once `bring_scripts` was called.

    Args:
        text: as the model wrote it.
        label: what it does, for screen readers and under the pointer.
    """
    encoded = base64.b64encode(text.encode()).decode()
    style = "border: 0; background: none; color: inherit; padding: 0.25rem; cursor: pointer; vertical-align: middle"
    name = escape(label)
    return f'<button data-copied="{encoded}" aria-label="{name}" title="{name}" style="{style}">{TWO_SHEETS}</button>'


def bring_scripts() -> None:
    """Give the page the scripts of its copy buttons and of its input."""
    from streamlit.components.v1 import html

    html(BRING_SCRIPTS.replace("SCRIPT", json.dumps(f"{{{COPY_SCRIPT}}}{{{DRAFT_SCRIPT}}}")), height=0)
