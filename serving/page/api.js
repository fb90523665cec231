// The server's endpoints, as the page needs them.

export class Failed extends Error {}

async function ask(path, options = {}) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  const text = await response.text();
  let message = text || response.statusText;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // not in the API's shape: whatever stands between, in its own words
  }
  throw new Failed(message);
}

const post = (path, body, signal) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export async function model() {
  return (await (await ask("v1/models")).json()).data[0];
}

// The events of a streamed answer, each parsed. Throws Failed, also for an error in mid-stream or a stream that is cut.
export async function* streamed(body, signal) {
  const response = await post("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Failed("the stream ended before the answer did");
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Failed(parsed.error.message);
      yield parsed;
    }
  }
}

export const vote = (ballot) => post("v1/feedback", ballot);
export const withdraw = (id) => ask(`v1/feedback/${encodeURIComponent(id)}`, { method: "DELETE" });
export const forget = (talk) => ask(`v1/feedback?conversation=${encodeURIComponent(talk)}`, { method: "DELETE" });
