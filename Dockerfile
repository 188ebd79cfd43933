# A model behind HTTP on a CPU. Build the wheel first: python -m build --wheel
FROM python:3.11-slim
COPY dist/*.whl constraints.txt /tmp/
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
 && wheel=$(ls /tmp/headstart-*.whl) \
 && pip install --no-cache-dir -c /tmp/constraints.txt "headstart[serve,openvino,train] @ file://$wheel" \
 && rm -rf /tmp/* \
 && useradd --system --no-create-home headstart
ENV PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 HOME=/tmp
USER headstart
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["headstart", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--token-file", "/run/tokens"]
