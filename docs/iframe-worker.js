// The search of a page that is opened as a file: there a browser starts no worker, so it runs in a frame that is not
// shown. The theme looks for the name IFrameWorker and the file's name.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      inside.document.open();
      inside.document.close();
      const load = (source) => new Promise((resolve, reject) => {
        const script = inside.document.createElement("script");
        Object.assign(script, { src: source, onload: resolve, onerror: reject });
        inside.document.documentElement.append(script);
      });
      inside.postMessage = (data) => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })));
      inside.importScripts = (...sources) => sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
      this.deliver = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      this.ready = load(String(address));
    }

    postMessage(data) {
      this.ready.then(() => this.deliver(data));
    }
  };
}
