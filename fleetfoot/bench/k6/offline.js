// Batch engines: at every tick each makes a burst of pods, looks at its own and at all of the namespace,
// and removes its own, one step after the other's answer (closed loop); one that is late misses ticks.
// Beside it, each keeps a watch of its own pods.
import http from 'k6/http';
import exec from 'k6/execution';
import { sleep } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';

const { URL, NAMESPACE, ENGINES, BURST, PERIOD, WARM_UP, SECONDS, CERTIFICATE, KEY, SUMMARY } = __ENV;
const place = `${URL}/api/v1/namespaces/${NAMESPACE}/pods`;
const latency = new Trend('latency', true);
const failed = new Rate('failed');
const pods = new Counter('pods');

const engines = { executor: 'constant-vus', vus: Number(ENGINES) };
const duration = `${Number(WARM_UP) + Number(SECONDS)}s`;

export const options = {
  scenarios: {
    work: { ...engines, duration, exec: 'work', gracefulStop: '30s' },
    watch: { ...engines, duration, exec: 'watch', gracefulStop: '0s' },
  },
  tlsAuth: [{ cert: open(CERTIFICATE), key: open(KEY) }],
  discardResponseBodies: true,
  batch: Number(BURST),
  batchPerHost: Number(BURST),
  summaryTrendStats: ['p(50)', 'p(99)', 'max', 'count'],
  thresholds: {
    'latency{op:create}': [],
    'latency{op:list}': [],
    'latency{op:delete}': [],
  },
};

function manifest(name, engine) {
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, labels: { engine } },
    spec: {
      containers: [
        { name: 'task', image: 'batch/task', resources: { requests: { cpu: '100m', memory: '64Mi' } } },
      ],
    },
  });
}

// Note what was answered; a client that is told to wait does so.
function note(counts, op, answers) {
  if (counts) {
    for (const answer of answers) {
      latency.add(answer.timings.duration, { op });
      failed.add(answer.status < 200 || answer.status > 299);
    }
    if (op === 'create') pods.add(answers.filter((answer) => answer.status === 201).length);
  }
  const told = answers.find((answer) => answer.status === 429);
  if (told) sleep(Number(told.headers['Retry-After'] || 1));
}

// All engines wake at the same moments, as jobs that are started by the clock do; without a period they
// never rest.
function tick() {
  const period = Number(PERIOD) * 1000;
  if (period) sleep((period - (Date.now() % period)) / 1000);
}

export function work() {
  tick();
  // A burst counts as a whole, by its tick: so as many count in each arm, unless an engine is late.
  const since = (Date.now() - exec.scenario.startTime) / 1000 - Number(WARM_UP);
  if (since >= Number(SECONDS)) return;
  const counts = since >= 0;
  const engine = `e${exec.vu.idInTest}`;
  const names = Array.from({ length: Number(BURST) }, (_, n) => `${engine}-${exec.vu.iterationInScenario}-${n}`);
  // Client libraries take compressed answers, which is what long lists are sent as.
  const headers = { 'Content-Type': 'application/json', 'Accept-Encoding': 'gzip' };
  const params = { timeout: '30s', headers };
  const made = http.batch(names.map((name) => ['POST', place, manifest(name, engine), params]));
  note(counts, 'create', made);
  note(counts, 'list', [http.get(`${place}?labelSelector=engine%3D${engine}&resourceVersion=0`, params)]);
  note(counts, 'list', [http.get(`${place}?resourceVersion=0`, params)]);
  const there = names.filter((_, n) => made[n].status === 201);
  note(counts, 'delete', http.batch(there.map((name) => ['DELETE', `${place}/${name}`, null, params])));
}

export function watch() {
  const query = `watch=1&timeoutSeconds=5&labelSelector=engine%3De${exec.vu.idInTest}`;
  const answer = http.get(`${place}?${query}`, { timeout: '30s' });
  if (answer.status !== 200) sleep(1);
}

export function handleSummary(data) {
  return { [SUMMARY]: JSON.stringify(data.metrics) };
}
