# EditScope on CPU: docker build -t editscope . && docker run -p 7860:7860 editscope
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    HF_HOME=/home/user/.cache/huggingface \
    EDITSCOPE_HOME=/home/user/.cache/editscope \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_ANALYTICS_ENABLED=False \
    PYTHONUNBUFFERED=1
RUN mkdir -p "$HF_HOME" "$EDITSCOPE_HOME" "$HOME/app"
WORKDIR /home/user/app

# torch alone from the CPU index, whatever else from PyPI; source last, so that a change of code installs nothing.
COPY --chown=user requirements.txt constraints.txt ./
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch \
 && pip install --no-cache-dir -r requirements.txt -c constraints.txt

COPY --chown=user . .
EXPOSE 7860
CMD ["python", "app.py"]
