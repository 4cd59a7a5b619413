// grpc's published interop cases with @grpc/grpc-js: node interop_client.js ADDRESS PROTO_FOLDER
// One line a case: "ok NAME" or "failed NAME: why". Exit status 1 when one failed.
'use strict';
const assert = require('assert');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, folder] = process.argv.slice(2);
const definition = loader.loadSync('interop/test.proto', {includeDirs: [folder], keepCase: true});
const testing = grpc.loadPackageDefinition(definition).grpc.testing;
const client = new testing.TestService(address, grpc.credentials.createInsecure());

const LARGE_REQUEST = 271828;
const LARGE_RESPONSE = 314159;
const RESPONSE_SIZES = [31415, 9, 2653, 58979];
const REQUEST_SIZES = [27182, 8, 1828, 45904];
const zeros = (size) => ({body: Buffer.alloc(size)});

function unary(method, request, metadata = new grpc.Metadata(), options = {}) {
  return new Promise((resolve, reject) => {
    const seen = {};
    const call = client[method](request, metadata, options, (error, response) => {
      if (error) reject(error);
      else resolve({response, seen, call});
    });
    call.on('metadata', (initial) => { seen.initial = initial; });
    call.on('status', (status) => { seen.status = status; });
  });
}

function collect(stream) {
  return new Promise((resolve, reject) => {
    const seen = {messages: []};
    stream.on('metadata', (initial) => { seen.initial = initial; });
    stream.on('data', (message) => seen.messages.push(message.payload.body.length));
    stream.on('error', reject);
    stream.on('status', (status) => { seen.status = status; });
    stream.on('end', () => setImmediate(() => resolve(seen)));
  });
}

async function fails(promise, code, details) {
  try {
    await promise;
  } catch (error) {
    assert.strictEqual(error.code, code, error.message);
    if (details !== undefined) assert.strictEqual(error.details, details);
    return;
  }
  assert.fail('the call should have failed');
}

const large = {response_size: LARGE_RESPONSE, payload: zeros(LARGE_REQUEST)};
async function status(code, message) {
  const response_status = {code, message};
  await fails(unary('UnaryCall', {response_status}), code, message);
  const stream = client.FullDuplexCall();
  const done = collect(stream);
  stream.write({response_status});
  stream.end();
  await fails(done, code, message);
}

const cases = {
  async empty_unary() {
    const {response} = await unary('EmptyCall', {});
    assert.deepStrictEqual(response, {});
  },
  async large_unary() {
    const {response} = await unary('UnaryCall', large);
    assert.strictEqual(response.payload.body.length, LARGE_RESPONSE);
  },
  async server_compressed_unary() {
    for (const value of [true, false]) {
      const {response} = await unary('UnaryCall', {...large, response_compressed: {value}});
      assert.strictEqual(response.payload.body.length, LARGE_RESPONSE);
    }
  },
  async client_compressed_unary() {
    const options = {'grpc.default_compression_algorithm': 2};
    const packed = new testing.TestService(address, grpc.credentials.createInsecure(), options);
    await new Promise((resolve, reject) => packed.UnaryCall(large, (error, response) => {
      if (error) return reject(error);
      assert.strictEqual(response.payload.body.length, LARGE_RESPONSE);
      resolve();
    }));
    packed.close();
  },
  async client_streaming() {
    await new Promise((resolve, reject) => {
      const stream = client.StreamingInputCall((error, response) => {
        if (error) return reject(error);
        assert.strictEqual(response.aggregated_payload_size, 74922);
        resolve();
      });
      for (const size of REQUEST_SIZES) stream.write({payload: zeros(size)});
      stream.end();
    });
  },
  async server_streaming() {
    const response_parameters = RESPONSE_SIZES.map((size) => ({size}));
    const {messages} = await collect(client.StreamingOutputCall({response_parameters}));
    assert.deepStrictEqual(messages, RESPONSE_SIZES);
  },
  async server_compressed_streaming() {
    const response_parameters = [
      {size: 31415, compressed: {value: true}}, {size: 92653, compressed: {value: false}},
    ];
    const {messages} = await collect(client.StreamingOutputCall({response_parameters}));
    assert.deepStrictEqual(messages, [31415, 92653]);
  },
  async ping_pong() {
    const stream = client.FullDuplexCall();
    const done = collect(stream);
    let next = 0;
    const ping = () => {
      if (next === RESPONSE_SIZES.length) return stream.end();
      stream.write({
        response_parameters: [{size: RESPONSE_SIZES[next]}], payload: zeros(REQUEST_SIZES[next]),
      });
      ++next;
    };
    stream.on('data', ping);
    ping();
    const {messages, status} = await done;
    assert.deepStrictEqual(messages, RESPONSE_SIZES);
    assert.strictEqual(status.code, grpc.status.OK);
  },
  async empty_stream() {
    const stream = client.FullDuplexCall();
    const done = collect(stream);
    stream.end();
    assert.deepStrictEqual((await done).messages, []);
  },
  async custom_metadata() {
    const metadata = new grpc.Metadata();
    metadata.set('x-grpc-test-echo-initial', 'test_initial_metadata_value');
    metadata.set('x-grpc-test-echo-trailing-bin', Buffer.from([0xab, 0xab, 0xab]));
    const stream = client.FullDuplexCall(metadata);
    const done = collect(stream);
    stream.write({response_parameters: [{size: LARGE_RESPONSE}], payload: zeros(LARGE_REQUEST)});
    stream.end();
    const seen = await done;
    assert.deepStrictEqual(
        seen.initial.get('x-grpc-test-echo-initial'), ['test_initial_metadata_value']);
    assert.deepStrictEqual(
        seen.status.metadata.get('x-grpc-test-echo-trailing-bin'),
        [Buffer.from([0xab, 0xab, 0xab])]);
    const call = await unary('UnaryCall', large, metadata);
    assert.deepStrictEqual(
        call.seen.initial.get('x-grpc-test-echo-initial'), ['test_initial_metadata_value']);
  },
  status_code_and_message: () => status(grpc.status.UNKNOWN, 'test status message'),
  special_status_message: () => status(
      grpc.status.UNKNOWN, '\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n'),
  unimplemented_method: () => fails(unary('UnimplementedCall', {}), grpc.status.UNIMPLEMENTED),
  async unimplemented_service() {
    const other =
        new testing.UnimplementedService(address, grpc.credentials.createInsecure());
    await fails(
        new Promise((resolve, reject) => other.UnimplementedCall(
            {}, (error, response) => (error ? reject(error) : resolve(response)))),
        grpc.status.UNIMPLEMENTED);
    other.close();
  },
  async cancel_after_begin() {
    await fails(new Promise((resolve, reject) => {
      const stream =
          client.StreamingInputCall((error, response) => (error ? reject(error) : resolve(response)));
      stream.cancel();
    }), grpc.status.CANCELLED);
  },
  async cancel_after_first_response() {
    const stream = client.FullDuplexCall();
    const done = collect(stream);
    stream.write({response_parameters: [{size: 31415}], payload: zeros(27182)});
    stream.on('data', () => stream.cancel());
    await fails(done, grpc.status.CANCELLED);
  },
  async timeout_on_sleeping_server() {
    const stream = client.FullDuplexCall(new grpc.Metadata(), {deadline: Date.now() + 1});
    const done = collect(stream);
    stream.write({payload: zeros(27182)});
    await fails(done, grpc.status.DEADLINE_EXCEEDED);
  },
  async concurrent_large_unary() {
    await Promise.all(Array.from({length: 100}, () => cases.large_unary()));
  },
  async thousands_of_concurrent_calls() {
    const request = {response_size: 10, payload: zeros(10)};
    const answers = await Promise.all(Array.from({length: 2000}, () => unary('UnaryCall', request)));
    assert(answers.every(({response}) => response.payload.body.length === 10));
  },
};

(async () => {
  let failed = 0;
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run();
      console.log(`ok ${name}`);
    } catch (error) {
      ++failed;
      console.log(`failed ${name}: ${error.message}`);
    }
  }
  client.close();
  process.exit(failed === 0 ? 0 : 1);
})();
