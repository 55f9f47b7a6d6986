// Every operation of the API through openai-node.
//
//     node walk.mjs FOLDER OPERATION...
//
// FOLDER holds node_modules; the operations are operationIds of the route table, so that a new one can not be forgotten.
// Prints one JSON object: for each operation the answers as they went over the wire.

import { createRequire } from "node:module";
import path from "node:path";

const [folder, ...operations] = process.argv.slice(2);
const { OpenAI, BadRequestError, toFile } = createRequire(path.join(folder, "package.json"))("openai");

let answers = [];

async function recording(address, options) {
  const response = await fetch(address, options);
  const copy = response.clone();
  const { pathname } = new URL(address);
  answers.push([options.method.toUpperCase(), pathname, copy.status, copy.headers.get("content-type"), await copy.text()]);
  return response;
}

const client = new OpenAI({ maxRetries: 0, fetch: recording });
const { assistants, threads } = client.beta;
const { messages, runs } = threads;
const { files, uploads } = client;
const weather = { type: "function", function: { name: "get_weather", parameters: { type: "object", properties: {} } } };
const metadata = { k: "v" };

const newAssistant = () => assistants.create({ model: "gpt-4o", tools: [weather], metadata });
const newThread = (content = "hello") => threads.create({ messages: [{ role: "user", content }] });

async function newRun(content, options = {}) {
  const [assistant, thread] = [await newAssistant(), await newThread(content)];
  const run = await runs.createAndPoll(thread.id, { assistant_id: assistant.id, ...options });
  return [run, { thread_id: thread.id }];
}

async function newMessage() {
  const thread = await newThread();
  return [(await messages.list(thread.id)).data[0].id, { thread_id: thread.id }];
}

const newStore = () => client.vectorStores.create({ name: "Walk", metadata });

async function newFile(name = "a.txt", text = "Some words to be found.") {
  return (await client.files.create({ file: await toFile(Buffer.from(text), name), purpose: "assistants" })).id;
}

async function storeWithFile() {
  const store = await newStore();
  const file = await client.vectorStores.files.createAndPoll(store.id, { file_id: await newFile() });
  must(file.status === "completed", "the file is read");
  return [store.id, file.id];
}

async function newBatch(store) {
  const file_ids = [await newFile("b.txt"), await newFile("c.txt")];
  return (await client.vectorStores.fileBatches.create(store.id, { file_ids })).id;
}
const sentFile = async (more = {}) =>
  files.create({ file: await toFile(Buffer.from("some text"), "a.txt"), purpose: "assistants", ...more });
const newUpload = (bytes) =>
  uploads.create({ filename: "a.txt", purpose: "assistants", mime_type: "text/plain", bytes });
const newPart = async (id, text) => uploads.parts.create(id, { data: await toFile(Buffer.from(text)) });

async function collect(pages) {
  const all = [];
  for await (const one of pages) all.push(one);
  return all;
}

const outputs = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map((call) => ({ tool_call_id: call.id, output: "rain" }));

function must(truth, what) {
  if (!truth) throw new Error(`not so: ${what}`);
}

const walk = {
  createAssistant: newAssistant,
  listAssistants: () => assistants.list({ limit: 2, order: "asc" }),
  getAssistant: async () => assistants.retrieve((await newAssistant()).id),
  modifyAssistant: async () => assistants.update((await newAssistant()).id, { name: "Other", instructions: null }),
  deleteAssistant: async () => must((await assistants.delete((await newAssistant()).id)).deleted, "deleted"),
  createThread: () => threads.create({ metadata }),
  getThread: async () => threads.retrieve((await newThread()).id),
  modifyThread: async () => threads.update((await newThread()).id, { metadata }),
  deleteThread: async () => must((await threads.delete((await newThread()).id)).deleted, "deleted"),
  createMessage: async () => {
    const image = { type: "image_url", image_url: { url: "https://example.com/a.png" } };
    await messages.create((await newThread()).id, { role: "user", content: [{ type: "text", text: "this?" }, image] });
  },
  listMessages: async () => {
    const [run] = await newRun("hello");
    must((await collect(messages.list(run.thread_id, { limit: 1 }))).length === 2, "two messages in two pages");
    must((await messages.list(run.thread_id, { run_id: run.id })).data.length === 1, "one message of the run");
  },
  getMessage: async () => messages.retrieve(...(await newMessage())),
  modifyMessage: async () => {
    const [id, where] = await newMessage();
    await messages.update(id, { ...where, metadata });
  },
  deleteMessage: async () => must((await messages.delete(...(await newMessage()))).deleted, "deleted"),
  createRun: async () => {
    const [assistant, thread] = [await newAssistant(), await newThread()];
    const run = await runs.stream(thread.id, { assistant_id: assistant.id }).finalRun();
    must(run.status === "completed", "a streamed run ends");
    must((await runs.create(thread.id, { assistant_id: assistant.id })).status === "queued", "a new run is queued");
  },
  createThreadAndRun: async () => {
    const thread = { messages: [{ role: "user", content: "hello" }] };
    const { id } = await newAssistant();
    must((await threads.createAndRunPoll({ assistant_id: id, thread })).status === "completed", "it ends");
    must((await threads.createAndRunStream({ assistant_id: id, thread }).finalRun()).usage.total_tokens > 0, "usage");
  },
  getRun: async () => runs.retrieve((await newRun("weather"))[0].id, (await newRun("hello"))[1]).catch(notFound),
  listRuns: async () => {
    const [run] = await newRun("hello");
    must((await collect(runs.list(run.thread_id))).length === 1, "one run");
  },
  modifyRun: async () => {
    const [run, where] = await newRun("hello");
    await runs.update(run.id, { ...where, metadata });
  },
  cancelRun: async () => {
    const [run, where] = await newRun("weather");
    must((await runs.cancel(run.id, where)).status === "cancelling", "cancelling");
    must((await runs.poll(run.id, where)).status === "cancelled", "cancelled");
  },
  submitToolOuputsToRun: async () => {
    const [run, where] = await newRun("weather");
    const body = { ...where, tool_outputs: outputs(run) };
    must((await runs.submitToolOutputsAndPoll(run.id, body)).status === "completed", "it goes on");
    const [other, there] = await newRun("two cities");
    const stream = runs.submitToolOutputsStream(other.id, { ...there, tool_outputs: outputs(other) });
    must((await stream.finalRun()).status === "completed", "it goes on, streamed");
  },
  listRunSteps: async () => {
    const [run, where] = await newRun("weather");
    must((await runs.steps.list(run.id, where)).data[0].type === "tool_calls", "a step of calls");
  },
  getRunStep: async () => {
    const [run, where] = await newRun("hello");
    const [step] = (await runs.steps.list(run.id, where)).data;
    await runs.steps.retrieve(step.id, { ...where, run_id: run.id });
  },
  listModels: () => client.models.list(),
  retrieveModel: () => client.models.retrieve("scripted"),
  deleteModel: async () => {
    const refusal = await client.models.delete("scripted").catch((error) => error);
    must(refusal instanceof BadRequestError, "a model can not be deleted");
  },
  createVectorStore: newStore,
  listVectorStores: async () => {
    const store = await newStore();
    must((await client.vectorStores.list({ limit: 1 })).data[0].id === store.id, "the newest comes first");
  },
  getVectorStore: async () => client.vectorStores.retrieve((await newStore()).id),
  modifyVectorStore: async () => client.vectorStores.update((await newStore()).id, { name: "Other", metadata: null }),
  deleteVectorStore: async () => must((await client.vectorStores.delete((await newStore()).id)).deleted, "deleted"),
  searchVectorStore: async () => {
    const [store, file] = await storeWithFile();
    const [found] = await collect(client.vectorStores.search(store, { query: "words" }));
    must(found.file_id === file && found.content[0].text.includes("words"), "the file is found");
  },
  createVectorStoreFile: storeWithFile,
  listVectorStoreFiles: async () => {
    const [store] = await storeWithFile();
    must((await collect(client.vectorStores.files.list(store, { filter: "completed" }))).length === 1, "one file");
  },
  getVectorStoreFile: async () => {
    const [vector_store_id, file] = await storeWithFile();
    await client.vectorStores.files.retrieve(file, { vector_store_id });
  },
  updateVectorStoreFileAttributes: async () => {
    const [vector_store_id, file] = await storeWithFile();
    await client.vectorStores.files.update(file, { vector_store_id, attributes: { a: "x", b: 1, c: true } });
  },
  deleteVectorStoreFile: async () => {
    const [vector_store_id, file] = await storeWithFile();
    must((await client.vectorStores.files.delete(file, { vector_store_id })).deleted, "deleted");
  },
  retrieveVectorStoreFileContent: async () => {
    const [vector_store_id, file] = await storeWithFile();
    const pieces = await collect(client.vectorStores.files.content(file, { vector_store_id }));
    must(pieces[0].text === "Some words to be found.", "the text of the file");
  },
  createVectorStoreFileBatch: async () => {
    const files = [await toFile(Buffer.from("one"), "1.txt"), await toFile(Buffer.from("two"), "2.txt")];
    const batch = await client.vectorStores.fileBatches.uploadAndPoll((await newStore()).id, { files });
    must(batch.status === "completed" && batch.file_counts.completed === 2, "both are read");
  },
  getVectorStoreFileBatch: async () => {
    const store = await newStore();
    const batch = await client.vectorStores.fileBatches.poll(store.id, await newBatch(store));
    must(batch.file_counts.completed === 2, "both are read");
  },
  cancelVectorStoreFileBatch: async () => {
    const store = await newStore();
    await client.vectorStores.fileBatches.cancel(await newBatch(store), { vector_store_id: store.id });
  },
  listFilesInVectorStoreBatch: async () => {
    const store = await newStore();
    const files = client.vectorStores.fileBatches.listFiles(await newBatch(store), { vector_store_id: store.id });
    must((await collect(files)).length === 2, "two files");
  },
  createFile: async () => {
    const file = await sentFile({ expires_after: { anchor: "created_at", seconds: 3600 } });
    must(file.bytes === 9 && file.filename === "a.txt" && file.expires_at === file.created_at + 3600, "what was sent");
  },
  listFiles: async () => {
    const made = [await sentFile(), await sentFile(), await sentFile()];
    const listed = await collect(files.list({ limit: 2, order: "asc", purpose: "assistants" }));
    must(made.every(({ id }) => listed.some((one) => one.id === id)), "all in pages of two");
  },
  retrieveFile: async () => {
    const { id } = await sentFile();
    must((await files.retrieve(id)).status === "processed", "processed");
    must((await files.waitForProcessing(id)).id === id, "there is nothing to wait for");
  },
  deleteFile: async () => must((await files.delete((await sentFile()).id)).deleted, "deleted"),
  downloadFile: async () => must((await (await files.content((await sentFile()).id)).text()) === "some text", "its bytes"),
  createUpload: async () => must((await newUpload(6)).status === "pending", "pending"),
  addUploadPart: async () => {
    const { id } = await newUpload(6);
    must((await uploads.parts.create(id, { data: await toFile(Buffer.from("sixbyt")) })).upload_id === id, "its part");
  },
  completeUpload: async () => {
    const { id } = await newUpload(6);
    const [second, first] = [await newPart(id, "two"), await newPart(id, "one")];
    const { file } = await uploads.complete(id, { part_ids: [first.id, second.id] });
    must((await (await files.content(file.id)).text()) === "onetwo", "the parts in the order of the call");
  },
  cancelUpload: async () => must((await uploads.cancel((await newUpload(6)).id)).status === "cancelled", "cancelled"),
  // Extensions: no method of the client knows them, its `get` and `post` take any path.
  listThreads: async () => {
    const thread = await threads.create({ metadata: { walk: "listThreads" } });
    const page = await client.get("/threads", { query: { limit: 1, "metadata[walk]": "listThreads" } });
    must(page.data.length === 1 && page.data[0].id === thread.id, "the newest thread comes first");
  },
  forkThread: async () => {
    const [run] = await newRun("hello");
    const fork = await client.post(`/threads/${run.thread_id}/fork`, { body: {} });
    must((await messages.list(fork.id)).data.length === 2, "the copy has both messages");
  },
  retryRun: async () => {
    const [run, where] = await newRun("break");
    must(run.status === "failed", "a model that breaks off fails the run");
    const again = await client.post(`/threads/${run.thread_id}/runs/${run.id}/retry`);
    must(again.status === "queued" && again.id !== run.id, "a new run");
    must((await runs.poll(again.id, where)).status === "failed", "which ends");
  },
  followRunEvents: async () => {
    const [run] = await newRun("hello");
    const events = await client.get(`/threads/${run.thread_id}/runs/${run.id}/events`, { stream: true });
    const names = (await collect(events)).map((one) => one.event);
    must(names[0] === "thread.run.created" && names.at(-1) === "thread.run.completed", "from the start to the end");
  },
  rebuildVectorStore: async () => {
    const [store, file] = await storeWithFile();
    must((await client.post(`/vector_stores/${store}/rebuild`)).status === "in_progress", "it is read again");
    must((await client.vectorStores.files.poll(store, file)).status === "completed", "to the end");
  },
};

function notFound(error) {
  must(error.status === 404, "a run of another thread is not found");
}

const seen = {};
for (const operation of operations) {
  must(walk[operation], `the walk knows ${operation}`);
  answers = [];
  await walk[operation]();
  seen[operation] = answers;
}
process.stdout.write(JSON.stringify(seen));
