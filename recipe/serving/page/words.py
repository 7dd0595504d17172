"""Every text of the web page, in Chinese and in English."""

from __future__ import annotations

from collections.abc import Callable

from recipe.languages import LANGUAGES

# A text in each of LANGUAGES.
WORDS: dict[str, tuple[str, str]] = {
    # While there is no conversation
    "loading": ("正在加载模型：{what}", "Loading the model: {what}"),
    "loading_hint": ("首次加载需要几秒到一分钟，加载完成后所有访客共用。", "Seconds to a minute, once; then it serves every visitor."),
    "missing": ("还没有可用的模型", "There is no model yet"),
    "failed": ("模型无法加载", "The model cannot be loaded"),
    "again": ("重试", "Try again"),
    "examples": ("试试这些问题：", "Some questions to begin with:"),
    "ask": ("输入问题，按回车发送", "Type a question, press Enter"),
    # The conversation
    "stop": ("停止生成", "Stop generating"),
    "regenerate": ("重新生成", "Regenerate"),
    "new_chat": ("新对话", "New chat"),
    "copy": ("复制回答", "Copy the reply"),
    "edit": ("修改问题", "Edit the question"),
    "edit_question": ("修改问题，之后的对话会重新开始", "Edit the question; what follows goes"),
    "unanswered": (
        "页面刷新或服务器重启，这个问题没有得到回答，要重新发送吗？",
        "The page was loaded anew or the server restarted before this question was answered. Send it again?",
    ),
    "send": ("发送", "Send"),
    "cancel": ("取消", "Cancel"),
    "tuned": ("微调后", "Tuned"),
    "base": ("基座", "Base"),
    "empty_reply": ("（没有内容）", "(nothing)"),
    "note": ("{tokens} 个 token · 首 token {first} 秒 · {speed} token/秒", "{tokens} tokens · first after {first} s · {speed} tokens/s"),
    "note_short": ("{tokens} 个 token", "{tokens} tokens"),
    "stopped": ("已停止", "stopped"),
    "cut": ("达到长度上限", "reached the length limit"),
    "reply_failed": ("回答失败，问题未保留：{why}", "The reply failed, and the question was taken back: {why}"),
    "too_long": (
        "问题太长，模型读不下：请缩短问题、系统提示词，或减小“回答长度”。（{why}）",
        "The question is too long for the model: shorten it or the system prompt, or allow a shorter reply. ({why})",
    ),
    "out_of_memory": (
        "内存或显存不足：请缩短对话，或关闭其他程序后重试。",
        "Out of memory: shorten the conversation, or end what else uses the memory, and try again.",
    ),
    # Settings
    "language": ("语言 Language", "语言 Language"),
    "compare": ("与基座对比", "Compare with the base"),
    "compare_help": (
        "同一个问题同时问基座和微调后的模型。两者共用一份权重，只是开关适配器。",
        "Asks base and tuned model the same question. They are one model in memory, its adapter on and off.",
    ),
    "no_compare": (
        "无法对比：找不到基座或适配器，只加载了合并后的模型。",
        "No comparison: base or adapter is not there, so the merged model alone is loaded.",
    ),
    "settings": ("生成设置", "Settings"),
    "temperature": ("随机性 Temperature", "Temperature"),
    "temperature_help": ("0：总是选最可能的词，每次回答相同。越大越多样。", "0: always the likeliest token, the same reply every time. Higher: more varied."),
    "top_p": ("核采样 Top-p", "Top-p"),
    "top_p_help": ("只从累计概率达到该值的最可能的词中选。", "Chooses among the likeliest tokens that together reach this probability."),
    "longest": ("回答长度上限", "Longest reply"),
    "longest_help": ("以 token 计；问题和历史占用其余部分。", "In tokens; what remains is for question and history."),
    "penalty": ("重复惩罚", "Repetition penalty"),
    "penalty_help": ("大于 1 时，已出现过的词更不容易再出现。", "Above 1, tokens that were there before become less likely."),
    "seed": ("随机种子", "Seed"),
    "seed_help": ("相同的种子和设置得到相同的回答；-1 表示每次不同。", "The same seed and settings give the same reply; -1: another each time."),
    "system": ("系统提示词", "System prompt"),
    "system_help": ("留空则不发送，与训练时一致。", "Sent only where there is one; training had none."),
    # Earlier conversations
    "history": ("历史对话", "History"),
    "history_where": (
        "对话只保存在这个浏览器里（最近 {most} 个），不存到服务器。",
        "Conversations are stored in this browser alone (the last {most}), never on the server.",
    ),
    "history_keep": ("在此浏览器中保存对话", "Keep conversations in this browser"),
    "history_off": ("新的内容不会保存；已保存的对话仍可打开或删除。", "Nothing new is kept; what was kept can still be opened or deleted."),
    "history_unavailable": (
        "这个浏览器不允许保存数据，刷新后对话会消失。",
        "This browser allows no storage, so a conversation ends when the page is loaded again.",
    ),
    "history_full": (
        "浏览器的存储空间已满，这个对话没有保存：请删除旧对话。",
        "The browser has no more room, so this conversation is not kept: delete earlier ones.",
    ),
    "history_long": (
        "这个对话太长，后面的内容没有保存：请导出，或开始新对话。",
        "This conversation is too long to keep what came last: export it, or begin a new one.",
    ),
    "history_damaged": ("已移除损坏的对话记录。", "Damaged conversations were removed from the history."),
    "not_opened": ("这个对话已损坏，已从历史中移除：{why}", "This conversation was damaged and is no longer in the history: {why}"),
    "delete": ("删除对话", "Delete the conversation"),
    "delete_all": ("全部删除", "Delete all"),
    "sure": ("确认删除？", "Really delete?"),
    "answered_by": ("由另一个模型回答：{model}", "answered by another model: {model}"),
    # The conversation as a file
    "conversation": ("对话", "Conversation"),
    "export": ("导出 JSON", "Export as JSON"),
    "import": ("导入 JSON", "Import JSON"),
    "import_help": ("OpenAI 格式的 messages。", "OpenAI-format messages."),
    "imported": ("已导入 {turns} 轮对话。", "{turns} turns imported."),
    "not_imported": ("无法导入 {file}：{why}", "{file} was not imported: {why}"),
    "not_json": ("不是 JSON 文件", "it is not JSON"),
    "no_messages": ("需要一个 messages 列表", "it holds no list of messages"),
    "bad_message": (
        "第 {number} 条消息应为 {role} 且 content 为文本",
        "message {number} must be of role {role} with a text as its content",
    ),
    "bad_text": ("第 {number} 条消息含有不是文字的字符（{what}）", "message {number} holds {what}, which is no text"),
    "not_text": ("输入含有不是文字的字符（{what}），请删除。", "What you typed holds {what}, which is no text: remove it."),
    "unfinished": ("最后一个问题没有回答", "the last question has no answer"),
    "too_many": ("消息超过 {most} 条", "it holds more than {most} messages"),
    "too_many_characters": (
        "问题或系统提示词超过 {most} 个字符，请缩短。",
        "The question or the system prompt is longer than {most} characters: shorten it.",
    ),
    "too_big": ("文件超过 1 MB", "it is larger than 1 MB"),
}  # fmt: skip

EXAMPLES = {
    "zh": ("你是谁？", "法国的首都是哪里？", "“空”的反义词是什么？", "讲个笑话吧"),
    "en": ("Who are you?", "What is the capital of France?", "What is 3 plus 4?", "Tell me a joke."),
}

Words = Callable[..., str]


def words(language: str) -> Words:
    """The texts in one language.

    Args:
        language: one of LANGUAGES.

    Returns:
        A function of a key of WORDS and the values that its text takes: `say("imported", turns=3)`.
    """
    index = LANGUAGES.index(language)
    return lambda key, **values: WORDS[key][index].format(**values)
