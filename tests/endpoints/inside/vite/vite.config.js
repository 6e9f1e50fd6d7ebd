export default { cacheDir: "/tmp/vite", server: { port: 3000, strictPort: true }, logLevel: "info" };
