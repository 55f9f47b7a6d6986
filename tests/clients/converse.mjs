// A conversation as a program of the hosted API's time would hold it; runs under openai-node 6 and 7.
//
//     node converse.mjs FOLDER openai|azure
//
// FOLDER holds node_modules. The address and the key come from the environment, under the names that the client reads
// itself. Prints one JSON object: what was seen.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [folder, kind] = process.argv.slice(2);
const fromFolder = createRequire(path.join(folder, "package.json"));
const { OpenAI, AzureOpenAI, NotFoundError } = fromFolder("openai");
const { version } = JSON.parse(readFileSync(path.join(folder, "node_modules/openai/package.json"), "utf8"));

function makeClient() {
  if (kind === "azure") {
    const endpoint = process.env.AZURE_OPENAI_ENDPOINT;
    return new AzureOpenAI({ endpoint, apiVersion: "2024-05-01-preview", maxRetries: 0 });
  }
  return new OpenAI({ maxRetries: 0 });
}

async function missing(client) {
  try {
    await client.beta.threads.retrieve("thread_nowhere");
  } catch (error) {
    if (error instanceof NotFoundError) return error.error.message;
    throw error;
  }
  return "";
}

async function collect(pages) {
  const all = [];
  for await (const one of pages) all.push(one);
  return all;
}

async function converse(client) {
  const { assistants, threads } = client.beta;
  const assistant = await assistants.create({
    name: "Math Tutor",
    instructions: "Be brief.",
    model: "gpt-4-turbo-preview",
    metadata: { kind: "tutor" },
  });
  const thread = await threads.create();
  const question = await threads.messages.create(thread.id, { role: "user", content: "3x + 11 = 14?" });
  const polled = await threads.runs.createAndPoll(thread.id, { assistant_id: assistant.id });
  const answers = await threads.messages.list(thread.id, { order: "asc", after: question.id });

  await threads.messages.create(thread.id, { role: "user", content: "천천히 다시요" });
  const events = [];
  const deltas = [];
  const done = [];
  const stream = threads.runs.stream(thread.id, { assistant_id: assistant.id });
  stream.on("event", (event) => events.push(event.event));
  stream.on("textDelta", (delta) => deltas.push(delta.value ?? ""));
  stream.on("messageDone", (message) => done.push(message.content[0].text.value));
  const streamed = await stream.finalRun();
  await stream.done();
  const messages = await collect(threads.messages.list(thread.id, { order: "asc", limit: 3 }));
  const steps = await threads.runs.steps.list(streamed.id, { thread_id: thread.id });
  await assistants.delete(assistant.id);
  return {
    version,
    assistant: assistant.id,
    metadata: assistant.metadata,
    polled: polled.status,
    answer: answers.data[0].content[0].text.value,
    streamed: streamed.status,
    tokens: streamed.usage?.total_tokens ?? null,
    events,
    deltas,
    done,
    roles: messages.map((message) => message.role),
    steps: steps.data.map((step) => step.type),
    missing: await missing(client),
  };
}

process.stdout.write(JSON.stringify(await converse(makeClient())));
