// What the page says, in the languages it speaks; `data-word`, `data-label` and `data-place` in index.html name entries.

const WORDS = {
  en: {
    skip: "Skip to the message", conversations: "Conversations", conversation: "Conversation", new: "New conversation",
    search: "Search conversations", import: "Import", export: "Export", open_menu: "Show conversations",
    close_menu: "Hide conversations", settings: "Settings", message: "Message", send: "Send", stop: "Stop",
    two: "Two answers, to pick the better", system: "System prompt", temperature: "Temperature", top_p: "Top p",
    max_tokens: "Most tokens of an answer", seed: "Seed", by_model: "up to the server", random: "a new one each time",
    language: "Language", theme: "Colours", auto: "As the system", light: "Light", dark: "Dark", done: "Done",
    trains: "My votes may train the next model (otherwise only I see them)", untitled: "New conversation",
    you: "You", model: "Model", edit: "Edit", save: "Send as a new branch", cancel: "Cancel", retry: "Retry",
    compare: "Compare with another", copy: "Copy", copied: "Copied", up: "Good answer", down: "Bad answer",
    better_answer: "Better answer…", correction: "What should have been said", send_correction: "Send this correction",
    corrected: "Corrected", reason: "Add a reason", principle: "Principle", none: "none", comment: "Comment",
    send_reason: "Send the reason", pick: "This one is better", neither: "Neither", which: "Which answer is better, and by which principle?",
    picked: "Picked", before: "Previous branch", after: "Next branch", branch: "Branch {0} of {1}", delete: "Delete",
    delete_sure: "Delete this conversation, and its votes on the server?", go_on: "Go on",
    interrupted: "The page was left before the answer's end; what had arrived is here.",
    stopped: "Stopped.", length: "Cut off at the most tokens of an answer.", failed: "No answer: {0}",
    rate: "{0} tokens · {1} tokens/s · first after {2} s", thinking: "…", finished: "The answer is complete.",
    sent: "Your vote is stored.", unsent: "The vote was not stored: {0}", away: "The server does not answer: {0}",
    withdrawn: "Your vote is deleted.", full: "This browser's storage is full: export and delete conversations.",
    imported: "{0} conversations imported.", no_file: "This file has no conversations: {0}", nothing: "Nothing found.",
    welcome: "Ask something. Conversations stay in this browser.", code: "code",
    labelling: "Rank answers", skip_lanes: "Skip to the ranks", progress: "Progress", to_chat: "Chat", asked: "Query", answers: "Answers",
    ranks: "Ranks", label_comment: "Comment", earlier: "‹ Back", later: "Next ›", take_back: "Take back", pass: "Skip (0)",
    keep: "Save (Enter)", empty: "(empty)",
    done_of: "{0} of {1} done", place_of: "{0} of {1}: {2}", is_waiting: "waiting", is_ranked: "ranked", is_skipped: "skipped",
    as_above: "as above", place: "Place {0}", gap: "Between, place {0}",
    all_done: "All queries are done. Thank you.", none_waits: "No answers await ranks here.",
    unsent_label: "The ranks were not stored: {0}", not_whole: "{0}: {1} has no place yet; place it, or take the others back.",
    no_rank: "Rank the answers under at least one principle, or skip the query.",
    label_kept: "The ranks are stored.", label_passed: "The query is skipped.", label_gone: "The ranks are taken back.",
    label_keys: "Drag the letters, the best to the left; on another letter's place they tie. Or press A, B, … in order, Shift with a letter ties it with the last, Backspace takes one back, ↑ ↓ change the principle, = ranks as above, / comments.",
  },
  zh: {
    skip: "跳到输入框", conversations: "对话列表", conversation: "对话", new: "新对话",
    search: "搜索对话", import: "导入", export: "导出", open_menu: "显示对话列表",
    close_menu: "隐藏对话列表", settings: "设置", message: "消息", send: "发送", stop: "停止",
    two: "给出两个回答，选出较好的", system: "系统提示", temperature: "温度", top_p: "Top p",
    max_tokens: "回答的最大 token 数", seed: "随机种子", by_model: "由服务决定", random: "每次不同",
    language: "语言", theme: "颜色", auto: "跟随系统", light: "浅色", dark: "深色", done: "完成",
    trains: "我的评价可用于训练下一个模型（否则只有我能看到）", untitled: "新对话",
    you: "你", model: "模型", edit: "编辑", save: "作为新分支发送", cancel: "取消", retry: "重试",
    compare: "与另一个回答比较", copy: "复制", copied: "已复制", up: "好回答", down: "差回答",
    better_answer: "更好的回答…", correction: "应该怎样回答", send_correction: "发送这条更正",
    corrected: "已更正", reason: "补充理由", principle: "原则", none: "无", comment: "评论",
    send_reason: "发送理由", pick: "这个更好", neither: "都不选", which: "哪个回答更好？依据哪条原则？",
    picked: "已选", before: "上一个分支", after: "下一个分支", branch: "第 {0} 个分支，共 {1} 个", delete: "删除",
    delete_sure: "删除这个对话以及它在服务器上的评价？", go_on: "继续",
    interrupted: "回答结束前页面被关闭；已收到的内容在此。",
    stopped: "已停止。", length: "达到最大 token 数而截断。", failed: "没有回答：{0}",
    rate: "{0} 个 token · 每秒 {1} 个 · {2} 秒后开始", thinking: "……", finished: "回答完毕。",
    sent: "评价已保存。", unsent: "评价未能保存：{0}", away: "服务没有响应：{0}",
    withdrawn: "评价已删除。", full: "浏览器存储已满：请导出并删除一些对话。",
    imported: "已导入 {0} 个对话。", no_file: "文件中没有对话：{0}", nothing: "没有找到。",
    welcome: "请提问。对话只保存在这个浏览器里。", code: "代码",
    labelling: "回答排序", skip_lanes: "跳到排序", progress: "进度", to_chat: "对话", asked: "问题", answers: "回答",
    ranks: "排序", label_comment: "评论", earlier: "‹ 上一个", later: "下一个 ›", take_back: "撤回", pass: "跳过 (0)",
    keep: "保存 (Enter)", empty: "（空）",
    done_of: "已完成 {0} / {1}", place_of: "第 {0} 个，共 {1} 个：{2}", is_waiting: "待排序", is_ranked: "已排序", is_skipped: "已跳过",
    as_above: "同上", place: "第 {0} 名", gap: "插入为第 {0} 位",
    all_done: "所有问题都已完成。谢谢。", none_waits: "这里没有待排序的回答。",
    unsent_label: "排序未能保存：{0}", not_whole: "{0}：{1} 还没有名次；请放好，或把其他的撤下。",
    no_rank: "请至少按一条原则给回答排序，或跳过这个问题。",
    label_kept: "排序已保存。", label_passed: "问题已跳过。", label_gone: "排序已撤回。",
    label_keys: "拖动字母，最好的放在最左；放到另一个字母的位置上表示并列。也可依次按 A、B、……；Shift 加字母表示与最后一个并列，Backspace 撤下一个，↑ ↓ 切换原则，= 同上，/ 写评论。",
  },
};

// Those principles that every domain has unless it names its own, which are shown as they are named.
const PRINCIPLES = { zh: { harmless: "无害", helpful: "有用", truthful: "真实", fluent: "流畅", clear: "清楚" } };

let language = "en";

export function speak(wanted) {
  language = WORDS[wanted] ? wanted : (navigator.language || "").startsWith("zh") ? "zh" : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = say(node.dataset.word);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const node of document.querySelectorAll("[data-place]")) node.placeholder = say(node.dataset.place);
  return language;
}

export const named = (principle) => PRINCIPLES[language]?.[principle] ?? principle;

export function say(name, ...values) {
  return WORDS[language][name].replace(/\{(\d)\}/g, (_, place) => values[place]);
}
