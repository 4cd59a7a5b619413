// The microphone's samples as 16-bit ones, a tenth of a second at a time, and how loud they are.
class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.round(sampleRate / 10);
    this.samples = new Int16Array(this.size);
    this.filled = 0;
    this.square = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (!channel) return true;
    for (const sample of channel) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this.samples[this.filled++] = Math.round(clipped * 32767);
      this.square += clipped * clipped;
      if (this.filled === this.size) {
        const full = this.samples;
        const loudness = Math.sqrt(this.square / this.size);
        this.port.postMessage({ samples: full.buffer, loudness }, [full.buffer]);
        this.samples = new Int16Array(this.size); // the buffer of the last one has left
        this.filled = 0;
        this.square = 0;
      }
    }
    return true;
  }
}
registerProcessor("microphone", Microphone);
