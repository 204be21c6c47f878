// The search in a site opened from the disk: browsers start no worker there, so the same script runs in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.document.write(`<script>postMessage = data => parent.postMessage(data, "*")</script>
        <script>importScripts = () => {}</script><script src="${url}"></script>`);
      this.inside.document.close();
      addEventListener("message", event => {
        if (event.source === this.inside) this.dispatchEvent(new MessageEvent("message", {data: event.data}));
      });
    }
    postMessage(data) {
      this.inside.dispatchEvent(new MessageEvent("message", {data}));
    }
  };
