// A program that answers two rounds of function calls through AssistantStream; runs under openai-node 6 and 7.
//
//     node tools.mjs FOLDER TOOLS OUTPUTS
//
// FOLDER holds node_modules. TOOLS and OUTPUTS are JSON: the functions, and what each of them gives back. The address
// and the key come from the environment, under the names that the client reads itself. Prints one JSON object: what
// was heard, stream by stream.

import { createRequire } from "node:module";
import path from "node:path";

const [folder, tools, outputs] = process.argv.slice(2);
const { OpenAI } = createRequire(path.join(folder, "package.json"))("openai");
const OUTPUTS = JSON.parse(outputs);
const client = new OpenAI({ maxRetries: 0 });
const { assistants, threads } = client.beta;

function listen(stream) {
  const heard = { events: [], created: [], deltas: {}, done: {}, text: "", messages: [], steps: [], ended: 0 };
  stream.on("event", (event) => heard.events.push(event.event));
  stream.on("toolCallCreated", (call) => heard.created.push(call.function.name));
  stream.on("toolCallDelta", (delta, call) => {
    heard.deltas[call.id] = (heard.deltas[call.id] ?? "") + (delta.function?.arguments ?? "");
  });
  stream.on("toolCallDone", (call) => (heard.done[call.id] = call.function.arguments));
  stream.on("textDelta", (delta) => (heard.text += delta.value ?? ""));
  stream.on("messageDone", (message) => heard.messages.push(message.content[0].text.value));
  stream.on("runStepDone", (step) => heard.steps.push([step.type, step.status]));
  stream.on("end", () => (heard.ended += 1));
  return heard;
}

function answer(call) {
  JSON.parse(call.function.arguments); // as a program would; what is no JSON ends this one
  return { tool_call_id: call.id, output: OUTPUTS[call.function.name] };
}

const assistant = await assistants.create({ model: "gpt-4o", instructions: "Plan.", tools: JSON.parse(tools) });
const thread = await threads.create({ messages: [{ role: "user", content: "plan" }] });
const streams = [];
let stream = threads.runs.stream(thread.id, { assistant_id: assistant.id, parallel_tool_calls: false });
let run;
for (;;) {
  const heard = listen(stream);
  run = await stream.finalRun();
  const snapshots = await stream.finalRunSteps();
  streams.push({ ...heard, status: run.status, snapshots: snapshots.map((step) => step.step_details) });
  if (run.status !== "requires_action") break;
  const { tool_calls } = run.required_action.submit_tool_outputs;
  const tool_outputs = tool_calls.map(answer).reverse();
  stream = threads.runs.submitToolOutputsStream(run.id, { thread_id: thread.id, tool_outputs });
}
const { data } = await threads.runs.steps.list(run.id, { thread_id: thread.id, order: "asc" });
process.stdout.write(JSON.stringify({ streams, usage: run.usage, steps: data.map((step) => step.step_details) }));
