// Make objects, as many at a time as there are makers: FILE holds [path, object] pairs.
import http from 'k6/http';
import exec from 'k6/execution';
import { SharedArray } from 'k6/data';
import { Rate } from 'k6/metrics';

const { URL, FILE, CERTIFICATE, KEY, SUMMARY } = __ENV;
const objects = new SharedArray('objects', () => JSON.parse(open(FILE)));
const failed = new Rate('failed');

export const options = {
  scenarios: { fill: { executor: 'shared-iterations', vus: 16, iterations: objects.length, maxDuration: '10m' } },
  tlsAuth: [{ cert: open(CERTIFICATE), key: open(KEY) }],
};

export default function () {
  const [path, object] = objects[exec.scenario.iterationInTest];
  const answer = http.post(URL + path, JSON.stringify(object), {
    headers: { 'Content-Type': 'application/json' },
    timeout: '60s',
  });
  failed.add(answer.status !== 201);
  if (answer.status !== 201) console.error(`${answer.status} ${answer.error} ${answer.body}`);
}

export function handleSummary(data) {
  return { [SUMMARY]: JSON.stringify(data.metrics) };
}
