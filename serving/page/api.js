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

// The events of a streamed answer, each parsed and with its number. Throws Failed, also for an error in mid-stream or a
// stream that is cut.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Failed("the stream ended before the answer did");
    const found = (held + value).split("\n\n");
    held = found.pop();
    for (const event of found) {
      const data = event.match(/^data: (.*)$/m)?.[1];
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Failed(parsed.error.message);
      yield { ...parsed, number: Number(event.match(/^id: (\d+)$/m)?.[1]) };
    }
  }
}

export async function* streamed(body, signal) {
  yield* events(await post("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal));
}

// The same from an event on, of a stream that a page was left with. Throws Gone where nobody keeps it any more.
export class Gone extends Failed {}

export async function* resumed({ id, next }, signal) {
  let response;
  try {
    response = await ask(`v1/stream/${encodeURIComponent(id)}?from=${next}`, { signal });
  } catch (error) {
    throw error instanceof Failed ? new Gone(error.message) : error;
  }
  yield* events(response);
}

export const vote = (ballot) => post("v1/feedback", ballot);
export const withdraw = (id) => ask(`v1/feedback/${encodeURIComponent(id)}`, { method: "DELETE" });
export const labels = async () => (await ask("v1/labels")).json();
export const label = async (id) => (await ask(`v1/labels/${encodeURIComponent(id)}`)).json();
export const rank = (id, body) => post(`v1/labels/${encodeURIComponent(id)}`, body);
export const unrank = (id) => ask(`v1/labels/${encodeURIComponent(id)}`, { method: "DELETE" });
export const forget = (talk) => ask(`v1/feedback?conversation=${encodeURIComponent(talk)}`, { method: "DELETE" });
